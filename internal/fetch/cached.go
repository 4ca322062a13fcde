package fetch

import "github.com/lacunafs/lacuna/internal/cache"

// Cached is an object of a cache root as a Fetcher takes it.
func Cached(o *cache.Object) CacheObject { return cached{o} }

type cached struct{ *cache.Object }

var _ Digested = cached{}

// SHA256 is the digest that the object must have, or empty.
func (c cached) SHA256() string { return c.Meta().SHA256 }

// Verified tells whether the object was found to have its digest.
func (c cached) Verified() bool { return c.Meta().Verified }

// ReadAt reads through the descriptor that was open before anybody could mark
// the file: a read through it raises no event.
func (c cached) ReadAt(p []byte, off int64) (int, error) { return c.File().ReadAt(p, off) }
