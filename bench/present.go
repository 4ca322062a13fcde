package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lacunafs/lacuna/internal/mount"
)

// side is one of the places where the same files are.
type side struct {
	name string
	dir  string
	took []time.Duration
}

// sides are an image whose data is all present, its files on ext4, and those in
// an image of mkfs.erofs that is mounted in the same way.
type sides struct {
	b    *bench
	all  []*side
	m    *mounted
	made *mount.Filesystem
}

// newSides mounts the image and copies it.
func (b *bench) newSides(img *image) (s *sides, err error) {
	s = &sides{b: b, all: []*side{
		{name: "Lacuna"}, {name: "ext4", dir: b.path("copy")}, {name: "mkfs.erofs", dir: b.path("made")},
	}}
	b.registry.line.set(false)
	if s.m, err = b.mount(img, b.path("root-present")); err != nil {
		return nil, err
	}
	s.all[0].dir = s.m.dir
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if _, err := timed("cp", "-a", s.m.dir, s.all[1].dir); err != nil {
		return nil, err
	}
	// Between the files nothing is left over: all was read.
	if n, err := s.m.missing(); n != 0 || err != nil {
		return nil, errors.Join(err, fmt.Errorf("%d bytes are missing after all was read", n))
	}
	// It is measured as the next mount finds it, all present.
	if err := s.m.close(); err != nil {
		return nil, err
	}
	s.m = nil
	again, err := b.mount(img, b.path("root-present"))
	if err != nil {
		return nil, err
	}
	s.m = again
	ahead, err := readAheadNow()
	if err != nil {
		return nil, err
	}
	if _, err := timed("mkfs.erofs", "--quiet", b.path("made.erofs"), s.all[1].dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.all[2].dir, 0o755); err != nil {
		return nil, err
	}
	if s.made, err = (mount.EROFS{Image: b.path("made.erofs"), ReadAhead: ahead}).Make(); err != nil {
		return nil, err
	}
	return s, errors.Join(s.made.MoveTo(s.all[2].dir), s.made.Close())
}

func (s *sides) close() error {
	var errs []error
	if s.m != nil {
		errs = append(errs, s.m.close())
	}
	if s.made != nil {
		errs = append(errs, mount.Unmount(s.all[2].dir, false))
	}
	for _, name := range []string{"root-present", "copy", "made", "made.erofs"} {
		errs = append(errs, os.RemoveAll(s.b.path(name)))
	}
	return errors.Join(errs...)
}

// compare measures the same thing at all sides by turns, warm and cold, and gives
// what row makes of the medians of ours and each other one's.
func (s *sides) compare(what string, run func(dir string) error, print func(what string, ours, other time.Duration, name string)) error {
	for _, cold := range []bool{false, true} {
		for _, side := range s.all {
			side.took = nil
			if err := run(side.dir); err != nil { // so that the first is warm
				return fmt.Errorf("%s of %s: %w", what, side.name, err)
			}
		}
		for range s.b.rounds + 2 {
			for _, side := range s.all {
				if cold {
					if err := dropCaches(); err != nil {
						return err
					}
				}
				start := time.Now()
				if err := run(side.dir); err != nil {
					return fmt.Errorf("%s of %s: %w", what, side.name, err)
				}
				side.took = append(side.took, time.Since(start))
			}
		}
		name := what + ", warm page cache"
		if cold {
			name = what + ", cold page cache"
		}
		ours := median(s.all[0].took)
		for _, other := range s.all[1:] {
			print(name, ours, median(other.took), other.name)
		}
	}
	return nil
}

// presentFiles reads files that are all present.
func presentFiles(b *bench) error {
	if err := b.presentFiles(largeImage, "large files of an image", largeLayers*(largeFiles+1)); err != nil {
		return err
	}
	return b.presentFiles(modelImage, "files of an image of large files", 0)
}

func (b *bench) presentFiles(what, big string, all int) (err error) {
	img, err := b.image(what)
	if err != nil {
		return err
	}
	s, err := b.newSides(img)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	bytes := int64(largeLayers * bigSize)
	print := func(what string, ours, other time.Duration, name string) {
		row(what+", beside "+name, rate(bytes, ours), rate(bytes, other), ratio(other, ours)+" of its throughput", "at least 0.95")
	}
	if err := s.compare(big+" that is all present", readBig, print); err != nil || all == 0 {
		return err
	}
	if bytes, err = readTree(s.all[1].dir); err != nil {
		return err
	}
	return s.compare(fmt.Sprintf("all %d files of it", all), func(dir string) error {
		_, err := readTree(dir)
		return err
	}, print)
}

// findAll lists many files with all that stat tells.
func findAll(b *bench) (err error) {
	img, err := b.image(manyImage)
	if err != nil {
		return err
	}
	s, err := b.newSides(img)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.compare(fmt.Sprintf("`find -ls` over %d files", manyFiles), func(dir string) error {
		_, err := timed("find", dir, "-ls")
		return err
	}, func(what string, ours, other time.Duration, name string) {
		row(what+", beside "+name, ms(ours), ms(other), ratio(ours, other), "at most 1.10")
	})
}

// readBig reads the large files.
func readBig(dir string) error {
	buf := make([]byte, readSize)
	for n := range largeLayers {
		if _, err := readFile(filepath.Join(dir, bigFile(n)), buf); err != nil {
			return err
		}
	}
	return nil
}

// readTree reads all files below dir, and tells how many bytes they have.
func readTree(dir string) (total int64, err error) {
	buf := make([]byte, readSize)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		n, err := readFile(path, buf)
		total += n
		return err
	})
	return total, err
}

// blind takes what is read, with no shortcut past reading.
type blind struct{}

// Write forgets p.
func (blind) Write(p []byte) (int, error) { return len(p), nil }

// readSize is how much is read at once.
const readSize = 256 << 10

func readFile(path string, buf []byte) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.CopyBuffer(blind{}, onlyReader{f}, buf)
}

// onlyReader hides what else a file can do.
type onlyReader struct{ io.Reader }
