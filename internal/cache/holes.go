package cache

import (
	"errors"
	"fmt"
	"io"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// findHoles returns the blocks of the ranges claimed, in order, that have a
// hole in the file. None where the file cannot tell.
func findHoles(f file, claimed []ondemand.Range, size int64) ([]ondemand.Range, error) {
	l, ok := f.(layout)
	if !ok {
		return nil, nil
	}
	var holes []ondemand.Range
	data, hole := int64(0), int64(0) // [data, hole) is known to be data
	for _, c := range claimed {
		for off := c.Off; off < c.End(); {
			if off >= data && off < hole {
				off = hole
				continue
			}
			var err error
			if data, err = l.NextData(off); errors.Is(err, io.EOF) {
				data, err = max(size, c.End()), nil
			}
			if err != nil {
				return nil, fmt.Errorf("look for holes: %w", err)
			}
			if data > off {
				r := ondemand.Range{Off: off, Len: min(data, c.End()) - off}.Blocks(size)
				holes = appendRange(holes, r)
				off = max(off, r.End())
				hole = data
				continue
			}
			if hole, err = l.NextHole(off); err != nil {
				return nil, fmt.Errorf("look for holes: %w", err)
			}
		}
	}
	return holes, nil
}

// findData returns the blocks of a file of size bytes, in order, that have data in
// it. All where the file cannot tell.
func findData(f file, size int64) ([]ondemand.Range, error) {
	l, ok := f.(layout)
	if !ok {
		return []ondemand.Range{{Len: size}}, nil
	}
	var found []ondemand.Range
	for off := int64(0); off < size; {
		data, err := l.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("look for data: %w", err)
		}
		hole, err := l.NextHole(data)
		if err != nil {
			return nil, fmt.Errorf("look for data: %w", err)
		}
		r := ondemand.Range{Off: data, Len: hole - data}.Blocks(size)
		if r.Empty() {
			break // behind the object's end
		}
		found = appendRange(found, r)
		off = r.End()
	}
	return found, nil
}

// appendRange adds r to list, joining it to the last where they meet.
func appendRange(list []ondemand.Range, r ondemand.Range) []ondemand.Range {
	if n := len(list); n > 0 && r.Off <= list[n-1].End() {
		list[n-1].Len = max(list[n-1].End(), r.End()) - list[n-1].Off
		return list
	}
	return append(list, r)
}

// without is list less the blocks of cut.
func without(list []ondemand.Range, cut ondemand.Range) []ondemand.Range {
	var out []ondemand.Range
	for _, r := range list {
		if x := r.Intersect(ondemand.Range{Len: cut.Off}); !x.Empty() {
			out = append(out, x)
		}
		if end := cut.End(); r.End() > end {
			start := max(r.Off, end)
			out = append(out, ondemand.Range{Off: start, Len: r.End() - start})
		}
	}
	return out
}
