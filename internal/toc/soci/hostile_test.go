package soci_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/internal/zran"
)

// sample is a small layer, its zTOC in parts, and what writes them.
type sample struct {
	layer  []byte
	ztoc   *soci.Ztoc
	points []zran.Checkpoint
}

func newSample(t testing.TB) *sample {
	plain := toctest.Tar(t, append(toctest.Torture()[:8], toctest.Reg("x", toctest.Text(1<<20))))
	layer := zip(t, plain, 6)
	s := &sample{layer: layer}
	z := build(t, layer, soci.BuildOptions{SpanSize: 100_000})
	var b *toctest.Blob
	s.ztoc, b = open(t, z, len(layer))
	r, err := soci.NewReader(s.ztoc.Spans, b)
	if err != nil {
		t.Fatal(err)
	}
	spans, err := r.Load(t.Context(), 0, s.ztoc.Spans.Count())
	if err != nil {
		t.Fatal(err)
	}
	for _, span := range spans {
		s.points = append(s.points, span.Checkpoint)
	}
	return s
}

func (s *sample) clone() *sample {
	spans := *s.ztoc.Spans
	z := &soci.Ztoc{Tool: s.ztoc.Tool, Files: slices.Clone(s.ztoc.Files), Spans: &spans}
	return &sample{layer: s.layer, ztoc: z, points: slices.Clone(s.points)}
}

func (s *sample) bytes(t testing.TB) []byte {
	t.Helper()
	z, err := soci.Marshal(s.ztoc, s.points)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// use reads all that a zTOC says.
func use(t testing.TB, z []byte, layer int) error {
	b := &toctest.Blob{Bytes: z}
	zt, err := soci.Open(t.Context(), b, int64(layer))
	if err != nil {
		return err
	}
	tc, err := zt.TOC()
	if err != nil {
		return err
	}
	if err := tc.Validate(); err != nil {
		t.Errorf("not valid: %v", err)
	}
	r, err := soci.NewReader(zt.Spans, b)
	if err != nil {
		return err
	}
	for off := int64(0); off < 3<<20; off += 300_000 {
		spans, err := r.Covering(t.Context(), off, off+1)
		if err != nil {
			return err
		}
		for _, s := range spans {
			if s.BlobOff < 0 || s.BlobLen <= 0 || s.BlobOff > int64(layer)-s.BlobLen || s.Checkpoint.Out > off || s.End <= off {
				t.Errorf("span %+v for %d", s, off)
			}
		}
	}
	if err := r.Verify(t.Context(), digestOf(z)); err != nil {
		return err
	}
	var kept bytes.Buffer
	if err := r.Spans().Encode(&kept); err != nil {
		return err
	}
	_, err = soci.DecodeSpans(&kept)
	return err
}

func TestHostileValuesAreRefused(t *testing.T) {
	if s := newSample(t); use(t, s.bytes(t), len(s.layer)) != nil {
		t.Fatal("the sample itself is refused")
	}
	whole := newSample(t)
	cases := map[string]struct {
		change func(*sample)
		says   string
	}{
		"layer of another size":      {func(s *sample) { s.ztoc.Spans.BlobSize++ }, "this one has"},
		"more than deflate gives":    {func(s *sample) { s.ztoc.Spans.Uncompressed = 1 << 40 }, "uncompressed"},
		"negative size":              {func(s *sample) { s.ztoc.Spans.Uncompressed = -1 }, "uncompressed"},
		"spans of 4 GB":              {func(s *sample) { s.ztoc.Spans.SpanSize = 4 << 30 }, "spans of 4294967296 bytes"},
		"negative span size":         {func(s *sample) { s.ztoc.Spans.SpanSize = -1 }, "spans of -1"},
		"bits of no byte":            {func(s *sample) { s.points[2].Bits = 8 }, "8 bits"},
		"span beyond the blob":       {func(s *sample) { s.points[2].In = int64(len(s.layer)) + 1 }, "begins at"},
		"last span beyond the blob":  {func(s *sample) { s.points[len(s.points)-1].In = 1 << 60 }, "begins at"},
		"span at the end":            {func(s *sample) { s.points[2].In, s.points[2].Bits = int64(len(s.layer)), 0 }, "begins at"},
		"negative place":             {func(s *sample) { s.points[2].In = -5 }, "begins at"},
		"spans that overlap":         {func(s *sample) { s.points[3].In = s.points[2].In - 100 }, "begins at"},
		"an empty span":              {func(s *sample) { s.points[3] = s.points[2] }, "begins at"},
		"a span of no output":        {func(s *sample) { s.points[3].Out = s.points[2].Out }, "uncompressed"},
		"spans that go back":         {func(s *sample) { s.points[3].Out = s.points[2].Out - 1 }, "uncompressed"},
		"output that cannot be":      {func(s *sample) { s.points[len(s.points)-1].Out = 1 << 50 }, "uncompressed"},
		"a first span in the middle": {func(s *sample) { s.points[0].Out = 1 }, "first span"},
		"a file without a header":    {func(s *sample) { s.ztoc.Files[0].Off = 0 }, "its data lie at"},
		"files that overlap":         {func(s *sample) { s.ztoc.Files[4].Off = s.ztoc.Files[3].Off }, "its data lie at"},
		"a file beyond the layer":    {func(s *sample) { s.ztoc.Files[8].Off = 1 << 30 }, "its data lie at"},
		"a file of 2^62":             {func(s *sample) { s.ztoc.Files[4].Size = 1 << 62 }, "4611686018427387904"},
		"a negative file":            {func(s *sample) { s.ztoc.Files[4].Size = -1 }, "+-1)"},
		"a file between blocks":      {func(s *sample) { s.ztoc.Files[8].Off++ }, "its data lie at"},
		"no type":                    {func(s *sample) { s.ztoc.Files[4].Type = "door" }, `type "door"`},
		"no time":                    {func(s *sample) { s.ztoc.Files[4].ModTime = "noon" }, `time "noon"`},
		"a name outside":             {func(s *sample) { s.ztoc.Files[4].Name = "../x" }, ".."},
		"a device of 2^40": {func(s *sample) {
			s.ztoc.Files[2].Type, s.ztoc.Files[2].Major = "char", 1<<40
		}, "device number"},
		"an attribute in pieces": {func(s *sample) { s.ztoc.Files[2].PAX = []soci.Record{{Key: "LIBARCHIVE.xattr.a", Value: "!"}} }, "base64"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := whole.clone()
			c.change(s)
			err := use(t, s.bytes(t), len(s.layer))
			if !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) || !strings.Contains(err.Error(), c.says) {
				t.Error(err)
			}
		})
	}
	for name, change := range map[string]func(*sample){
		"sparse": func(s *sample) { s.ztoc.Files[3].PAX = []soci.Record{{Key: "GNU.sparse.major", Value: "1"}} },
		"time":   func(s *sample) { s.ztoc.Files[3].ModTime = "" },
	} {
		s := whole.clone()
		change(s)
		if err := use(t, s.bytes(t), len(s.layer)); !errors.Is(err, toc.ErrNotFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Counts in the bytes themselves, which Marshal does not write wrong.
func TestHostileCountsAreRefused(t *testing.T) {
	s := newSample(t)
	z := s.bytes(t)
	at := s.ztoc.Spans.At - 12
	count := uint32(s.ztoc.Spans.Count())
	replace := func(old, new uint32) []byte {
		b := bytes.Clone(z)
		binary.LittleEndian.PutUint32(b[at:], new)
		if old != count {
			t.Fatal("no such count")
		}
		return b
	}
	all := map[string][]byte{
		"empty": nil, "four bytes": z[:4], "cut": z[:len(z)-1], "only zeros": make([]byte, 1000),
		"zero checkpoints": replace(count, 0), "4 G checkpoints": replace(count, 1<<32-1), "2 G checkpoints": replace(count, 1<<31-1),
		"one checkpoint more": replace(count, count+1),
	}
	vector := bytes.Clone(z) // of checkpoints, of 4 GB
	binary.LittleEndian.PutUint32(vector[at-4:], 1<<32-1)
	all["4 GB of checkpoints"] = vector
	// Vectors with as many elements as there are spans or files.
	for _, n := range []uint32{count, uint32(len(s.ztoc.Files))} {
		for i := 0; i+4 <= len(z); i += 4 {
			if int64(i) >= at && int64(i) < at+12+int64(count)*32785 || binary.LittleEndian.Uint32(z[i:]) != n {
				continue
			}
			b := bytes.Clone(z)
			binary.LittleEndian.PutUint32(b[i:], 1<<32-1)
			if err := use(t, b, len(s.layer)); err == nil {
				t.Logf("4 G instead of %d at %d: no count", n, i)
			} else if !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
				t.Error(err)
			}
		}
	}
	for name, b := range all {
		if err := use(t, b, len(s.layer)); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCutZtocsAreRefused(t *testing.T) {
	s := newSample(t)
	z := s.bytes(t)
	for n := 0; n < len(z); n += 1 + n/50 {
		if err := use(t, z[:n], len(s.layer)); err == nil {
			t.Errorf("%d of %d bytes are accepted", n, len(z))
		}
	}
}

func FuzzZtoc(f *testing.F) {
	s := newSample(f)
	z := s.bytes(f)
	f.Add(z)
	f.Add(build(f, toctest.Tar(f, toctest.Torture()[:5]), soci.BuildOptions{SpanSize: 1000, Stored: true}))
	small, err := soci.Build(f.Context(), bytes.NewReader(zip(f, toctest.Tar(f, toctest.Torture()[:3]), 6)), soci.BuildOptions{Tool: "x"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Fuzz(func(t *testing.T, z []byte) {
		for _, layer := range []int{len(s.layer), len(z)} {
			if err := use(t, z, layer); err != nil && !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) && !errors.Is(err, toc.ErrNotFormat) {
				t.Error(err)
			}
		}
	})
}

// FuzzChange damages a zTOC in a few places: most of it stays what it is, so that
// what is read last is reached too.
func FuzzChange(f *testing.F) {
	s := newSample(f)
	z := s.bytes(f)
	f.Add(uint32(100), uint32(1), uint32(4000), uint32(0xffffffff))
	f.Fuzz(func(t *testing.T, at, to, at2, to2 uint32) {
		b := bytes.Clone(z)
		binary.LittleEndian.PutUint32(b[int(at)%(len(b)-4):], to)
		binary.LittleEndian.PutUint32(b[int(at2)%(len(b)-4):], to2)
		if err := use(t, b, len(s.layer)); err != nil && !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) && !errors.Is(err, toc.ErrNotFormat) {
			t.Error(err)
		}
	})
}

func FuzzSpans(f *testing.F) {
	var b bytes.Buffer
	if err := newSample(f).ztoc.Spans.Encode(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := soci.DecodeSpans(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := s.Encode(&again); err != nil || !bytes.Equal(again.Bytes(), data) {
			t.Errorf("encodes otherwise: %v", err)
		}
	})
}
