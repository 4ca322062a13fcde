// Package cache keeps objects on disk: blobs and devices as they lie in a
// cache root, each a sparse data file, a record of which blocks of it are
// present, and its description.
//
//	ROOT/lock                              flock of the instance, its pid as text
//	ROOT/objects/<2 hex>/<key>/data        sparse, always of the object's size
//	ROOT/objects/<2 hex>/<key>/presence    header and bitmap pages, see docs/cache-format.md
//	ROOT/objects/<2 hex>/<key>/object.json what the object is
//	ROOT/partial/                          objects being made or removed
//
// What holds, whatever happens to the process, the machine or the disk: a
// block that the presence file claims has its right bytes in the data file.
// That follows from one order: data written, data durable (fdatasync), presence
// written, presence durable. Bytes may be there without being claimed; they are
// then fetched again. In memory a block is present as soon as it is written.
//
// A page of the presence file has two places on disk, and a checkpoint writes
// the one that does not hold the newest valid version. A torn write so costs
// that checkpoint and no earlier one. Forgetting blocks writes both places
// before it returns: otherwise the older version, which claims more, could come
// back when the newer one is damaged. A block that disk still claims is never
// written: Fill fails until it has been forgotten durably.
//
// When fdatasync of the data fails, the kernel has dropped what it could not
// write and will not say so again (errseq, Documentation/filesystems/vfs.rst).
// Everything filled since the last good one becomes missing again. Complete is
// true only once the last block is durable, so whoever stops watching a
// complete object cannot be left with a hole in it.
//
// Locks, in the order in which they are taken:
//
//	Root.mu          the open objects
//	Object.saving    one checkpoint, Invalidate, repair or Close at a time
//	Object.filling   read by Fill while it writes; written where blocks become missing
//	Object.mu        fresh ranges, metadata, counters
//	checkpointer.mu  which object is due when
//
// Has, Missing, Present and Complete take no lock.
package cache
