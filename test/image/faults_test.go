package image

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// sourceFaults are what a server can do to a request for a range.
var sourceFaults = map[string]sourcetest.Fault{
	"200 for 206":               sourcetest.Whole,
	"206 without Content-Range": sourcetest.ContentRange(""),
	"other start":               sourcetest.Shifted,
	"other end":                 sourcetest.EndsEarly,
	"other total":               sourcetest.WrongTotal,
	"total unknown":             sourcetest.TotalUnknown,
	"malformed Content-Range":   sourcetest.ContentRange("bytes 0-/300000"),
	"unsatisfied 206":           sourcetest.ContentRange("bytes */300000"),
	"closed at once":            sourcetest.Cut(0, sourcetest.Closed),
	"closed in the body":        sourcetest.Cut(20000, sourcetest.Closed),
	"reset at once":             sourcetest.Cut(0, sourcetest.Reset),
	"reset in the body":         sourcetest.Cut(20000, sourcetest.Reset),
	"stall at once":             sourcetest.Cut(0, sourcetest.Stalled),
	"stall in the body":         sourcetest.Cut(20000, sourcetest.Stalled),
	"no answer":                 sourcetest.Silent,
	"short, framed":             sourcetest.ShortFramed,
	"short, chunked":            sourcetest.ShortChunked,
	"long, framed":              sourcetest.LongFramed,
	"long, chunked":             sourcetest.LongChunked,
	"chunked":                   sourcetest.Chunked,
	"no length":                 sourcetest.NoLength,
	"429":                       sourcetest.Status(429, ""),
	"429 with Retry-After":      sourcetest.Status(429, "0"),
	"503":                       sourcetest.Status(503, ""),
	"500":                       sourcetest.Status(500, ""),
	"502":                       sourcetest.Status(502, ""),
	"404":                       sourcetest.Status(404, ""),
	"403":                       sourcetest.Status(403, ""),
	"304":                       sourcetest.Status(304, ""),
	"204":                       sourcetest.Status(204, ""),
	"412":                       sourcetest.Status(412, ""),
	"416":                       sourcetest.Unsatisfiable(3_000_000),
	"416 of another size":       sourcetest.Unsatisfiable(100),
	"other ETag":                sourcetest.Header("ETag", `"v2"`),
	"weak ETag":                 sourcetest.Header("ETag", `W/"v1"`),
	"no ETag":                   sourcetest.Header("ETag", ""),
	"gzip":                      sourcetest.Gzip,
	"multipart":                 sourcetest.Multipart,
	"redirect to nowhere":       sourcetest.Status(302, ""),
}

// asFile has a sourcetest.Server answer whatever is asked for with its one file.
func asFile(s *sourcetest.Server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q = q.Clone(q.Context())
		q.URL = &url.URL{Path: "/file"}
		s.ServeHTTP(w, q)
	})
}

// faultMembers are files of an image that another seed makes another one.
func faultMembers(seed uint64) []member {
	var members []member
	for n, size := range []int{100, 4096, 70_000, 300_001, 1<<20 + 5, 12_345} {
		members = append(members, file(fmt.Sprintf("d/file%d", n), string(toctest.Random(seed*100+uint64(n), size))))
	}
	return members
}

// Each fault of a registry while files of a mount are read, for one answer, for two,
// and for all: right bytes or EIO in time, and right bytes when it is well again.
func TestEachSourceFaultOnAMount(t *testing.T) {
	const deadline = 600 * time.Millisecond
	m := start(t, fmt.Sprintf("deadline = %q\nstall = \"200ms\"\n", deadline))
	seed := uint64(0)
	for _, name := range slices.Sorted(maps.Keys(sourceFaults)) {
		seed++
		for _, f := range faultFormats {
			if !formatOf(f).indexed {
				continue // all of it is here when it is mounted
			}
			t.Run(name+"/"+f, func(t *testing.T) {
				m := &mounted{m.For(t), t}
				image := formatOf(f).packAll(t, tarOf(t, faultMembers(seed)...))
				r := ocitest.New(t)
				server := sourcetest.NewServer(t, image.layers[0].blob)
				r.Blob(image.layers[0].blob, asFile(server))
				ref, tree := image.push(t, r), image.tree(t)
				dir := m.mount(ref, fmt.Sprint("mnt", seed))
				fault := sourceFaults[name]
				server.Next(fault, nil, fault, fault)
				server.Always(nil)
				sum := readOnce(t, dir, filesOf(tree)[:2], 2)
				server.Always(fault)
				for _, readers := range []int{4, 1} {
					more := readOnce(t, dir, filesOf(tree), readers)
					sum.add(more)
				}
				if sum.Wrong+sum.Other > 0 || sum.Slowest > 10*deadline {
					t.Errorf("%s: %q", sum.String(), sum.Examples)
				}
				server.Always(nil)
				instance.Eventually(t, 30*time.Second, func() error {
					if sum := readOnce(t, dir, filesOf(tree), 2); sum.EIO+sum.Other > 0 {
						return fmt.Errorf("%s %q", sum.String(), sum.Examples)
					}
					return nil
				})
				compare(t, dir, tree)
				m.umount(dir)
			})
		}
	}
	m.Lacuna("check", "--verify")
}

// The registry goes away at its Nth request, for every N until nothing asks for so
// many: a mount that fails has left nothing, one that stands gives right bytes or EIO;
// and when the registry is back, all is right.
func TestRegistryGoesAtEachRequest(t *testing.T) {
	for _, name := range faultFormats {
		f := formatOf(name)
		t.Run(f.name, func(t *testing.T) {
			m := start(t, "deadline = \"400ms\"\nstall = \"150ms\"\n")
			for n := 0; ; n++ {
				if n == 200 {
					t.Fatal("there is no end of requests")
				}
				image := f.packAll(t, tarOf(t, faultMembers(uint64(2*n))...), tarOf(t, faultMembers(uint64(2*n + 1))[2:4]...))
				front, r := newFaulty(t)
				ref, tree := image.push(t, r), image.tree(t)
				front.set(func() { front.left = n + 1 })
				dir, failed := filepath.Join(m.Dir, "mnt"), false
				if out, err := m.Try("mount", ref, dir); err != nil {
					failed = true
					if exit := instance.ExitOf(err); exit != 5 {
						t.Errorf("request %d: mount ends with %d: %s %v", n, exit, out, err)
					}
					m.wantNothing(dir)
				} else if sum := readOnce(t, dir, filesOf(tree), 4); sum.Wrong+sum.Other > 0 {
					t.Errorf("request %d: %s: %q", n, sum.String(), sum.Examples)
				}
				gone := false
				front.set(func() { gone, front.left, front.down = front.down, 0, false })
				if failed {
					m.Lacuna("mount", ref, dir)
				}
				instance.Eventually(t, 30*time.Second, func() error {
					if sum := readOnce(t, dir, filesOf(tree), 4); sum.EIO+sum.Other > 0 {
						return fmt.Errorf("%s %q", sum.String(), sum.Examples)
					}
					return nil
				})
				compare(t, dir, tree)
				m.umount(dir)
				if !gone {
					t.Logf("%d requests, each was the last once", n)
					return
				}
			}
		})
	}
}

// A registry that is away when an image is mounted for the first time.
func TestRegistryIsAwayAtFirst(t *testing.T) {
	m := start(t, "deadline = \"400ms\"\nstall = \"150ms\"\n")
	front, r := newFaulty(t)
	image := formatOf("estargz").packAll(t, tarOf(t, faultMembers(1)...))
	ref := image.push(t, r)
	front.set(func() { front.down = true })
	dir := filepath.Join(m.Dir, "mnt")
	_, err := m.Try("mount", ref, dir)
	if instance.ExitOf(err) != 5 || !strings.Contains(err.Error(), "hint:") {
		t.Errorf("mount: %v", err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("it has left %s: %v", dir, err)
	}
	m.wantNothing(dir)
}
