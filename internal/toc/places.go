package toc

// Places is where the data of each entry begins in the layer's device: the sum of
// the extents before it. It means nothing for entries that hold no place.
func (t *TOC) Places() []int64 {
	places := make([]int64, len(t.Entries))
	at := int64(0)
	for i := range t.Entries {
		places[i] = at
		at += t.Entries[i].Extent()
	}
	return places
}
