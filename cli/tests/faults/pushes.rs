//! RELIABILITY B2: what a push may leave behind when it is cut short at its end, and blobs that vanish.
