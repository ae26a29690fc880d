-rwxr-xr-x* 0/0               3 2000-01-01 00:00:00 "bin/ping"
  x: 20 security.capability
  x: 10 user.text
drwxr-xr-x* 0/0               0 2000-01-01 00:00:00 "d/"
  x: 0 user.empty
  x: 1000 user.long
lrwxrwxrwx  0/0               0 2000-01-01 00:00:00 "s" -> "d"
