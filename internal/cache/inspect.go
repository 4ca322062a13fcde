package cache

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Inspection is an object as `lacuna inspect` shows it.
type Inspection struct {
	ID       ondemand.ObjectID `json:"id"`
	Path     string            `json:"path"` // of the data file
	Size     int64             `json:"size"`
	Present  int64             `json:"present"`  // bytes
	Ranges   int               `json:"ranges"`   // present runs
	Missing  int64             `json:"missing"`  // bytes
	OnDisk   int64             `json:"on_disk"`  // bytes that the data file takes
	Complete bool              `json:"complete"` // every byte present and durable
	Source   json.RawMessage   `json:"source,omitempty"`
	SHA256   string            `json:"sha256,omitempty"`
	Verified bool              `json:"verified"` // had that digest once complete
	Versions Versions          `json:"versions"`
	// Parts: digests of its chunks or files are known elsewhere; set by the caller.
	Parts bool `json:"parts_have_digests,omitempty"`
	// Recovered is what opening the object found amiss.
	Recovered Recovery `json:"recovered,omitzero"`

	present []ondemand.Range
}

// Versions are those of the formats of an object's files.
type Versions struct {
	Object   int `json:"object"`   // object.json
	Presence int `json:"presence"` // presence
}

// Inspect describes the object as it is now.
func (o *Object) Inspect() (Inspection, error) {
	st, err := o.data.Stat()
	if err != nil {
		return Inspection{}, fmt.Errorf("inspect %s: %w", o.id.Short(), err)
	}
	m := o.Meta()
	runs := o.presence.Present(ondemand.Range{Len: o.size})
	in := Inspection{
		ID: o.id, Path: o.DataPath(), Size: o.size, OnDisk: st.disk,
		Ranges: len(runs), Complete: o.Complete(),
		Source: m.Source, SHA256: m.SHA256, Verified: m.Verified,
		Versions:  Versions{Object: m.Version, Presence: presenceVersion},
		Recovered: o.found, present: runs,
	}
	for _, r := range runs {
		in.Present += r.Len
	}
	in.Missing = in.Size - in.Present
	return in, nil
}

// The characters of a bar: nothing, some and all of what one stands for is present.
const (
	barEmpty   = '·'
	barPartial = '▒'
	barFull    = '█'
)

// Bar draws presence in width characters, each standing for an equal part of
// the object: all of it present, some, or none. An empty object is all full.
func (in Inspection) Bar(width int) string {
	if width <= 0 {
		return ""
	}
	var b strings.Builder
	next := 0
	for i := range int64(width) {
		part := barPart(in.Size, i, int64(width))
		have := int64(0)
		for next < len(in.present) && in.present[next].End() <= part.Off {
			next++
		}
		for k := next; k < len(in.present) && in.present[k].Off < part.End(); k++ {
			have += part.Intersect(in.present[k]).Len
		}
		switch {
		case have == part.Len:
			b.WriteRune(barFull)
		case have > 0:
			b.WriteRune(barPartial)
		default:
			b.WriteRune(barEmpty)
		}
	}
	return b.String()
}

// barPart is what the character i of width stands for: at least one byte of an
// object that has any, so that small ones have a bar too.
func barPart(size, i, width int64) ondemand.Range {
	edge := func(i int64) int64 { return size/width*i + size%width*i/width }
	off := min(edge(i), max(size-1, 0))
	return ondemand.Range{Off: off, Len: min(max(edge(i+1)-off, 1), size-off)}
}

// Print writes the inspection for people, with a bar of width characters.
func (in Inspection) Print(w io.Writer, width int) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s ", name+":")
		fmt.Fprintf(&b, format, args...)
		b.WriteByte('\n')
	}
	line("object", "%s", in.ID)
	line("data", "%s", in.Path)
	line("size", "%d bytes", in.Size)
	line("present", "%d bytes (%s) in %d ranges", in.Present, percent(in.Present, in.Size), in.Ranges)
	line("on disk", "%d bytes", in.OnDisk)
	if len(in.Source) > 0 {
		line("source", "%s", in.Source)
	}
	switch {
	case in.Verified:
		line("digest", "sha256:%s, verified", in.SHA256)
	case in.SHA256 != "":
		line("digest", "sha256:%s, not verified yet", in.SHA256)
	case in.Parts:
		line("digest", "of its parts: each is verified by its own")
	default:
		line("digest", "none known: what the source sent is not verifiable")
	}
	line("versions", "object %d, presence %d", in.Versions.Object, in.Versions.Presence)
	if in.Recovered.Reset != "" {
		line("recovered", "nothing is present any more: %s", in.Recovered.Reset)
	}
	if n := len(in.Recovered.Holes); n > 0 {
		line("recovered", "%d ranges recorded as present were holes", n)
	}
	if n := len(in.Recovered.BadSlots); n > 0 {
		line("recovered", "%d damaged places of the presence file", n)
	}
	if width > 0 {
		fmt.Fprintf(&b, "[%s]\n", in.Bar(width))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("print object %s: %w", in.ID.Short(), err)
	}
	return nil
}

// percent is part of whole, complete only when it is.
func percent(part, whole int64) string {
	if part == whole {
		return "100%"
	}
	return fmt.Sprintf("%.1f%%", min(float64(part)/float64(whole)*100, 99.9))
}
