package cache

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

var update = flag.Bool("update", false, "write the vectors anew")

// bytesFile is a presence file in memory, without holes.
type bytesFile struct{ b []byte }

func (f *bytesFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *bytesFile) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *bytesFile) Datasync() error         { return nil }
func (f *bytesFile) Stat() (fileStat, error) { return fileStat{size: int64(len(f.b))}, nil }
func (f *bytesFile) Close() error            { return nil }

// vectorHeader is that of the object of all vectors.
func vectorHeader() header {
	k, err := parseKey(idOf(0))
	if err != nil {
		panic(err)
	}
	return header{key: k, epoch: 0x1122334455667788, size: pageBytes + 10*block + 1, inode: 4711, birth: 1_700_000_000_000_000_001}
}

// vectorFile is a presence file that claims blocks 1 and 2, and the last two.
func vectorFile() *bytesFile {
	h := vectorHeader()
	s := emptySaved(&bytesFile{b: h.encode()}, h)
	s.record(ondemand.Range{Off: block, Len: 2 * block})
	if err := s.save(); err != nil {
		panic(err)
	}
	s.record(ondemand.Range{Off: h.size - block - 1, Len: block + 1})
	s.touch(ondemand.Range{Len: 1}, false)
	if err := s.save(); err != nil {
		panic(err)
	}
	return s.file.(*bytesFile)
}

// reseal puts the right checksum into the block at off.
func reseal(b []byte, off int64) {
	s := b[off : off+slotSize]
	binary.LittleEndian.PutUint32(s[12:], blockSum(s))
}

// vectors are presence files and what must come of them. The files are kept, so
// that a later version of the format is tried on them.
var vectors = []struct {
	name   string
	change func(b []byte) []byte
	expect string
}{
	{"good", func(b []byte) []byte { return b }, "present [4096,+8192) [130060288,+4097)"},
	{"newer-slot-torn", func(b []byte) []byte { b[slotOffset(0, 1)+2000] ^= 1; return b }, "present [4096,+8192) [130060288,+4097) bad 0/1"},
	{"both-slots-torn", func(b []byte) []byte {
		b[slotOffset(0, 0)+200] ^= 1
		b[slotOffset(0, 1)+2000] ^= 1
		return b
	}, "present [130060288,+4097) bad 0/0 0/1"},
	{"cut-in-header", func(b []byte) []byte { return b[:100] }, "other the presence file is cut off"},
	{"cut-in-slot", func(b []byte) []byte { return b[:slotOffset(1, 0)+60] }, "present [4096,+8192) bad 1/0"},
	{"slots-swapped-between-pages", func(b []byte) []byte {
		copy(b[slotOffset(0, 0):slotOffset(0, 1)], b[slotOffset(1, 0):])
		return b
	}, "present [4096,+8192) [130060288,+4097) bad 0/0"},
	{"block-behind-the-end", func(b []byte) []byte {
		b[slotOffset(1, 0)+slotHead+1] |= 0x08
		reseal(b, slotOffset(1, 0))
		return b
	}, "present [4096,+8192) bad 1/0"},
	{"reserved-not-zero", func(b []byte) []byte {
		b[3000] = 1
		reseal(b, 0)
		return b
	}, "other presence header: reserved bytes are not zero"},
	{"other-epoch", func(b []byte) []byte {
		b[slotOffset(1, 0)+50] ^= 1
		reseal(b, slotOffset(1, 0))
		return b
	}, "present [4096,+8192) bad 1/0"},
	{"version-0", func(b []byte) []byte {
		b[8] = 0
		reseal(b, 0)
		return b
	}, "other presence header: unknown format version 0"},
	{"version-2", func(b []byte) []byte {
		b[8] = 2
		reseal(b, 0)
		return b
	}, "newer 2"},
	{"version-2-damaged", func(b []byte) []byte { b[8] = 2; return b }, "other presence header: wrong checksum"},
}

// describe reads a presence file and says what came of it as the vectors do.
func describe(b []byte) string {
	s, err := loadSaved(&bytesFile{b: b}, vectorHeader())
	var newer *VersionError
	if errors.As(err, &newer) {
		return fmt.Sprintf("newer %d", newer.Version)
	}
	var other errOther
	if errors.As(err, &other) {
		return "other " + other.reason
	}
	if err != nil {
		return "error " + err.Error()
	}
	var out strings.Builder
	out.WriteString("present")
	for _, r := range s.durable.Present(ondemand.Range{Len: s.head.size}) {
		fmt.Fprintf(&out, " %v", r)
	}
	for i, bad := range s.torn {
		if i == 0 {
			out.WriteString(" bad")
		}
		fmt.Fprintf(&out, " %d/%d", bad.Page, bad.Slot)
	}
	return out.String()
}

// vectorPath is a file with a line "expect: ...", a line "object: ..." with
// size, inode and birth time, and the presence file in hexadecimal without
// runs of zeros.
func vectorPath(name string) string { return filepath.Join("testdata", "vectors", name+".presence") }

// packVector writes b as lines of 16 bytes with their offset; zeros are left out.
func packVector(b []byte, expect string) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "expect: %s\nlength: %d\n", expect, len(b))
	for off := 0; off < len(b); off += 16 {
		if line := b[off:min(off+16, len(b))]; !allZero(line) {
			fmt.Fprintf(&out, "%08x %s\n", off, hex.EncodeToString(line))
		}
	}
	return out.Bytes()
}

func unpackVector(t *testing.T, text []byte) (b []byte, expect string) {
	t.Helper()
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "expect: "); ok {
			expect = rest
			continue
		}
		var n int
		if _, err := fmt.Sscanf(line, "length: %d", &n); err == nil {
			b = make([]byte, n)
			continue
		}
		var off int
		var data []byte
		if _, err := fmt.Sscanf(line, "%x %x", &off, &data); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		copy(b[off:], data)
	}
	return b, expect
}

func TestVectors(t *testing.T) {
	if *update {
		for _, v := range vectors {
			must(t, os.WriteFile(vectorPath(v.name), packVector(v.change(vectorFile().b), v.expect), 0o644))
		}
	}
	kept, err := filepath.Glob(vectorPath("*"))
	must(t, err)
	if len(kept) < len(vectors) {
		t.Errorf("%d vectors, want at least %d: go test -run TestVectors -update", len(kept), len(vectors))
	}
	for _, path := range kept {
		text, err := os.ReadFile(path)
		must(t, err)
		b, expect := unpackVector(t, text)
		if got := describe(b); got != expect {
			t.Errorf("%s: %s\n want %s", path, got, expect)
		}
	}
	// What this version writes is what it is documented to write, byte by byte.
	text, err := os.ReadFile(vectorPath("good"))
	must(t, err)
	if want, _ := unpackVector(t, text); !bytes.Equal(vectorFile().b, want) {
		t.Error("the presence file is written otherwise than before: the format needs a new version")
	}
}

// A newer version is refused, and nothing of the object changes.
func TestNewerVersionsAreRefused(t *testing.T) {
	for _, c := range []struct {
		file   string
		change func([]byte) []byte
	}{
		{presenceName, func(b []byte) []byte { b[8] = 9; reseal(b, 0); return b }},
		{metaName, func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 9, "new": 3`), 1)
		}},
	} {
		dir := t.TempDir()
		r := openTestRoot(t, dir)
		m := metaOf(1, 5*block)
		o := mustCreate(t, r, m)
		mustFill(t, o, make([]byte, 5*block), ondemand.Range{Len: 2 * block})
		must(t, r.Close())
		path := filepath.Join(dir, objectDir(o.ID()), c.file)
		rewrite(t, path, c.change)
		before, err := os.ReadFile(path)
		must(t, err)
		r = openTestRoot(t, dir)
		var newer *VersionError
		if _, err := r.Create(m); !errors.As(err, &newer) || newer.Version != 9 || !strings.HasSuffix(newer.Path, c.file) {
			t.Errorf("%s: create: %v", c.file, err)
		}
		if _, err := r.Object(m.ID); !errors.As(err, &newer) {
			t.Errorf("%s: open: %v", c.file, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed: %v", c.file, err)
		}
	}
}

func TestMetaIsStrict(t *testing.T) {
	good := `{"version":1,"id":"` + string(idOf(1)) + `","size":5,"source":{"a": 1}}`
	if m, err := parseMeta([]byte(good)); err != nil || string(m.Source) != `{"a":1}` {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{
		"", "{}", "null", good + "x", good + good,
		strings.Replace(good, `"size"`, `"length"`, 1),
		strings.Replace(good, "5", "-5", 1),
		strings.Replace(good, `"version":1`, `"version":0`, 1),
		strings.Replace(good, `"id":"`, `"id":"G`, 1),
		strings.Replace(good, `"source"`, `"sha256":"xyz","source"`, 1),
	} {
		if _, err := parseMeta([]byte(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// FuzzPresence: no bytes make the reader panic or claim a block that no valid
// slot of the file claims, and what it read is read again after it was saved.
// With seal, checksums are made right first, so that what they guard is tried.
//
// Run it with -fuzzminimizetime=10x: inputs are large, and minimising each takes
// the default of a minute.
func FuzzPresence(f *testing.F) {
	for _, v := range vectors {
		f.Add(v.change(vectorFile().b), false)
		f.Add(v.change(vectorFile().b), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		for off := 0; seal && off+slotSize <= len(b); off += slotSize {
			reseal(b, int64(off))
		}
		s, err := loadSaved(&bytesFile{b: b}, vectorHeader())
		if err != nil {
			return
		}
		whole := ondemand.Range{Len: s.head.size}
		claimed := s.durable.Present(whole)
		for _, r := range claimed {
			for off := r.Off; off < r.End(); off += block {
				if !claimedBySlot(b, s.head, off/block) {
					t.Fatalf("block %d is claimed by no valid slot", off/block)
				}
				if off-r.Off > 64*block { // the rest of a long run is like it
					break
				}
			}
		}
		s.touch(whole, true)
		if err := s.save(); err != nil {
			t.Fatal(err)
		}
		again, err := loadSaved(s.file, vectorHeader())
		if err != nil || len(again.torn) > 0 || !equalRanges(again.durable.Present(whole), claimed) {
			t.Fatalf("claimed %v, after saving %v, bad %v: %v", claimed, again.durable.Present(whole), again.torn, err)
		}
	})
}

// claimedBySlot looks for the claim in the bytes themselves.
func claimedBySlot(b []byte, h header, n int64) bool {
	for which := range 2 {
		off := slotOffset(n/pageBlocks, which)
		p := make([]byte, slotSize)
		if _, err := bytes.NewReader(b).ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		bit := n % pageBlocks
		if binary.LittleEndian.Uint32(p[12:]) == blockSum(p) && bytes.HasPrefix(p, slotMagic[:]) &&
			[32]byte(p[16:48]) == h.key && p[slotHead+bit/8]&(1<<(bit%8)) != 0 {
			return true
		}
	}
	return false
}
