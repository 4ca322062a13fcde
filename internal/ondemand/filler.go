package ondemand

import "context"

// ObjectID names an object: 64 lower-case hexadecimal digits for an object of
// the cache, any printable text for one that an external daemon fills.
type ObjectID string

// Short is the ID as messages show it.
func (id ObjectID) Short() string {
	if len(id) == 64 {
		return string(id[:12])
	}
	return string(id)
}

// Filler brings the data of missing ranges.
type Filler interface {
	// Fill returns nil only when every byte of r is readable from the
	// object's file and verified as far as its format allows. It may fill
	// more than r. It may be called for ranges that are present, and
	// concurrently, also for overlapping ranges. When ctx ends it returns
	// with ctx's error, soon, or when what other Fills share with it has
	// come. An error, or a panic, reaches the readers of
	// the blocks of r that are still missing, as the errno that Errno gives.
	Fill(ctx context.Context, id ObjectID, r Range) error
}

type progressKey struct{}

// Progress tells that data for a Fill keeps coming, though none of its blocks may
// be present yet; ctx is the one that the Fill was called with, or of another
// origin, for which it does nothing. The deadline of the requests that need the
// Fill runs from here on again. Only what brings a Fill nearer to its end counts, and
// only a block or more since the last call: the deadline so is also the lowest rate
// that a reader is kept waiting at.
func Progress(ctx context.Context) {
	if tell, ok := ctx.Value(progressKey{}).(func()); ok {
		tell()
	}
}

// Object is what a front end must know of an object that it serves.
//
// All methods may be called concurrently and do no input or output.
type Object interface {
	// ID names the object; it never changes.
	ID() ObjectID
	// Size is the object's size in bytes; it never changes.
	Size() int64
	// Has tells whether every byte of r is present. Front ends call it for
	// each read of a marked file, so it also tells the object that r is
	// being read.
	Has(r Range) bool
	// Missing returns the missing parts of r, widened to blocks and cut at
	// the object's end.
	Missing(r Range) []Range
	// Complete tells whether every byte of the object is present.
	Complete() bool
}

// FillsApart is an Object that may say how its Filler takes overlapping Fills.
type FillsApart interface {
	// FillsApart tells whether a Fill of a part of what a running Fill asked for
	// brings that part sooner, and the rest not twice. Without it, no two running
	// Fills of an object overlap, unless the first has been cancelled.
	FillsApart() bool
}

// FilledHere is an Object whose data this process writes itself.
type FilledHere interface {
	// Filling tells whether every byte of r is being written now. A front end
	// lets such accesses of this process through, and no other ones to what is
	// missing: a read that let itself through would find zeros, and leave them
	// in page caches for everybody.
	Filling(r Range) bool
}

// fillsApart asks o where it can be asked.
func fillsApart(o Object) bool {
	a, ok := o.(FillsApart)
	return ok && a.FillsApart()
}
