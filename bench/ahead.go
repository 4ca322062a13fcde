package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// ahead is what is measured for each read-ahead of a mount.
type ahead struct {
	kib                                int
	sequential, random, small          []time.Duration // with the registry far away
	fetched                            []time.Duration // bytes of random, as nanoseconds
	complete, completeRandom, allFiles []time.Duration // all present, cold page cache
	faults                             []time.Duration // page faults there
}

const randomReads = 100

// readAheads measures how far ahead the kernel should read in a mount's files.
func readAheads(b *bench) error {
	img, err := b.image(largeImage)
	if err != nil {
		return err
	}
	var all []*ahead
	for kib := 128; kib <= 4096; kib *= 2 {
		all = append(all, &ahead{kib: kib})
	}
	for n := range b.rounds {
		for _, a := range all {
			if err := a.far(b, img, b.path(fmt.Sprintf("root-ahead-%d", n))); err != nil {
				return err
			}
		}
	}
	if err := presentAheads(b, img, all); err != nil {
		return err
	}
	fmt.Println("\n| read-ahead | missing: a large file | 4 KiB at random: p50 | fetched for a read | small files | present, cold: large files | 4 KiB at random: p50 | 100 page faults at random | all files |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, a := range all {
		fmt.Printf("| %d KiB | %s | %s | %d KiB | %s | %s | %s | %s | %s |\n", a.kib, ms(median(a.sequential)), us(median(a.random)),
			int64(median(a.fetched))>>10, ms(median(a.small)), ms(median(a.complete)), us(median(a.completeRandom)), ms(median(a.faults)), ms(median(a.allFiles)))
	}
	return nil
}

// far reads with an empty cache and the registry far away.
func (a *ahead) far(b *bench, img *image, root string) (err error) {
	b.registry.line.set(true)
	m, err := b.mount(img, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close(), os.RemoveAll(root)) }()
	if err := readAhead(a.kib); err != nil {
		return err
	}
	buf := make([]byte, readSize)
	start := time.Now()
	if _, err := readFile(m.path(bigFile(0)), buf); err != nil {
		return err
	}
	a.sequential = append(a.sequential, time.Since(start))
	before := b.registry.line.count(nil).bytes
	took, err := preads(m.path(bigFile(1)), 4096, places(5, randomReads, bigSize, 256<<10))
	if err != nil {
		return err
	}
	a.random = append(a.random, median(took))
	a.fetched = append(a.fetched, time.Duration((b.registry.line.count(nil).bytes-before)/randomReads))
	start = time.Now()
	for n := range largeFiles {
		if _, err := readFile(m.path(smallFile(2, n)), buf); err != nil {
			return err
		}
	}
	a.small = append(a.small, time.Since(start))
	return nil
}

// presentAheads reads what is all present, from the disk.
func presentAheads(b *bench, img *image, all []*ahead) (err error) {
	b.registry.line.set(false)
	root := b.path("root-ahead")
	m, err := b.mount(img, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close(), os.RemoveAll(root)) }()
	if _, err := readTree(m.dir); err != nil {
		return err
	}
	for range b.rounds + 2 {
		for _, a := range all {
			if err := a.near(m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *ahead) near(m *mounted) error {
	if err := readAhead(a.kib); err != nil {
		return err
	}
	whole := func(into *[]time.Duration, run func() error) func() error {
		return func() error {
			start := time.Now()
			err := run()
			*into = append(*into, time.Since(start))
			return err
		}
	}
	offs := places(6, randomReads, bigSize, 256<<10)
	typical := func(into *[]time.Duration, read func() ([]time.Duration, error)) func() error {
		return func() error {
			took, err := read()
			if err == nil {
				*into = append(*into, median(took))
			}
			return err
		}
	}
	for _, run := range []func() error{
		whole(&a.complete, func() error { return readBig(m.dir) }),
		whole(&a.allFiles, func() error {
			_, err := readTree(filepath.Join(m.dir, "layer3"))
			return err
		}),
		typical(&a.completeRandom, func() ([]time.Duration, error) { return preads(m.path(bigFile(2)), 4096, offs) }),
		whole(&a.faults, func() error { return faults(m.path(bigFile(1)), offs) }),
	} {
		if err := errors.Join(dropCaches(), run()); err != nil {
			return err
		}
	}
	return nil
}

// faults touches the page at each offset of a mapping.
func faults(path string, offs []int64) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := syscall.Mmap(int(f.Fd()), 0, bigSize, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	sum := byte(0)
	for _, off := range offs {
		sum += data[off]
	}
	runtime.KeepAlive(sum)
	return syscall.Munmap(data)
}
