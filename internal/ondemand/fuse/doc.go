// Package fuse is the front end over FUSE: a filesystem image is shown by this process,
// with no kernel support for EROFS or pre-content events. Names and attributes are
// answered from the image; a read is answered from the objects' files once what it
// needs is present, and until then its request waits in the table, without a goroutine
// or a buffer of its own.
//
// The protocol's messages are go-fuse's (include/uapi/linux/fuse.h); the connection is
// ours, so that it can outlive the process that began it: requests carry nothing that a
// process would have to remember, since node ids are inode numbers of the image.
package fuse
