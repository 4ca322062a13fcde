// Package fetch brings the missing bytes of objects from their sources.
//
// A Fetcher is the ondemand.Filler of objects whose bytes come from a
// source.Blob. Each object that is added has a list of streams: requests to
// the source that are running or wait for their turn. A Fill looks which of
// its missing blocks a stream is about to bring, starts streams for the
// others, and sleeps until its blocks are there. A stream reads its body in
// pieces, writes whole blocks through the cache as they come, and wakes every
// Fill whose last block it wrote; so a Fill ends when its own blocks are
// present, not when the stream ends.
//
// A stream belongs to the Fetcher, not to the Fill that started it. It ends
// early when nobody wants it: no Fill waits for it and it is no read-ahead
// that a reader still follows. When it fails, what it wrote stays. A Fill
// that waited for it takes its error only where the stream was begun for a
// demand and after the Fill came, which makes it the Fill's own attempt;
// otherwise the Fill begins a stream of its own. So the failure of somebody
// else's read-ahead costs a reader time and nothing else, and any number of
// Fills that wait for the same blocks make at most two attempts together.
//
// A request that two streams make for the same blocks, because one was
// cancelled in the middle of a piece, may write them twice: the same bytes,
// for a blob's identity is fixed.
//
// Readers are followed by heads (heads.go): a reader that goes on where it
// stopped gets a window ahead of it that doubles while it goes on.
//
// What is in flight is bounded by two gates (gate.go): requests per group of
// blobs, and bytes of buffers. Read-ahead and Hydrate may take only a part of
// each, and what is freed goes to a waiting demand first, so a demand always
// has a share that read-ahead cannot hold. The read-ahead of a head is begun only
// when it is admitted at once. A stream that waits its turn counts as
// read-ahead while only Hydrates wait for it, and becomes a demand when a reader
// does: a demand never waits for a stream that waits as read-ahead.
//
// The stream of an ordered blob, one that can be read only from its start, goes
// on without readers, for it could not be begun again in its middle. While no
// reader waits for it, it counts as read-ahead. Where that is more than read-ahead's
// share and a demand waits, a stream ends that was begun for readers and has
// had none for a while (yieldAfter). One that was admitted as read-ahead never does:
// it would begin anew each time, and Hydrates would not end.
//
// Lock order: Fetcher.mu, Object.mu, gate.mu. The cache, the source, Present
// and OnError are called with none of them held, except that the questions
// Has, Missing and Complete are asked under Object.mu: they do no input or
// output. A stream takes its slot before its buffer and holds both until it
// ends, and waits for nothing else that another stream holds, so streams
// cannot wait for each other in a circle.
package fetch
