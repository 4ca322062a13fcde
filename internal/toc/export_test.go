package toc

// SetLimit makes b refuse more than n entries or chunks.
func (b *Builder) SetLimit(n int) { b.limit = n }
