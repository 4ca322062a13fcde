// Package devnode lets an external daemon fill files that are read: the device
// cachefiles_ondemand of February 2022 as a SOCK_SEQPACKET socket.
//
// A Dir is the directory of sparse files that is served. A Server is an
// ondemand.Filler: each Fill becomes one record, which is pushed to the daemon
// that has connected and bound, and ends when that daemon says done, when its
// context ends, or when the daemon goes away (flush). The package does not stop
// readers, and it joins no overlapping requests: the front end and the request
// table do. The messages are package proto's; docs/devnode.md describes them.
//
// Right bytes or an error: done counts only when no hole is left in the range,
// and presence comes from the hole map when the directory is bound, and from
// done afterwards, never from holes seen later: a hole may be half filled. It
// lives in shared memory (Dir.Record), so that the next incarnation of this
// process, after a crash, has the same presence and not the holes of the moment.
//
// Nothing sleeps for ever: one lock is around "is a daemon bound" and "add the
// request", so that a flush misses none. The goroutine that reads commands never
// writes to the socket: a daemon that does not read its answers cannot block it.
//
// Locks: Server.mu is taken alone. Files are looked at and hooks are called
// without it.
package devnode
