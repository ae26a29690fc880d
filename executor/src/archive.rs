//! Local tar archives of ADD, unpacked into the destination.
