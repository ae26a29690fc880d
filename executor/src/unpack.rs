//! Unpacks layers: a tar stream into a directory in overlay format, whatever the stream says.
