package main

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// firstByte measures from starting the command to the first byte of a file, with
// an empty cache and a registry far away.
func firstByte(b *bench) error {
	img, err := b.image(largeImage)
	if err != nil {
		return err
	}
	for _, way := range []struct {
		name  string
		mount func(*image, string) (*mounted, error)
	}{{"`mount --foreground`", b.mount}, {"`mount` with a daemon", b.mountByDaemon}} {
		var total, ready, cpu []time.Duration
		var worst tally
		for n := range b.rounds + 2 {
			root := b.path(fmt.Sprintf("root-first-%d", n))
			b.registry.line.set(true)
			m, err := way.mount(img, root)
			if err != nil {
				return err
			}
			err = m.firstByte(smallFile(n%largeLayers, 1234))
			took := time.Since(m.began)
			count := b.registry.line.count(img.layers)
			if err := errors.Join(err, m.close(), os.RemoveAll(root)); err != nil {
				return err
			}
			total, ready, cpu = append(total, took), append(ready, m.ready.Sub(m.began)), append(cpu, m.cpu())
			worst.layer, worst.requests, worst.bytes = max(worst.layer, count.layer), max(worst.requests, count.requests), max(worst.bytes, count.bytes)
		}
		row(fmt.Sprintf("first byte of an image of %d MB in %d layers, %s, registry behind 10 ms and 50 MB/s", img.size/1e6, len(img.layers), way.name),
			fmt.Sprintf("%s, of which %s until mounted (%s of processors)", ms(median(total)), ms(median(ready)), ms(median(cpu))), "", "", "at most 400 ms")
		row("requests before that byte: most for one layer", fmt.Sprintf("%d (%d in all, %.1f MB)", worst.layer, worst.requests, float64(worst.bytes)/1e6), "", "", "at most 3")
	}
	return nil
}

// metadata measures how long the metadata of many files takes: from the last byte
// of the tables of contents to the mount, and a second mount from the cache.
func metadata(b *bench) error {
	img, err := b.image(manyImage)
	if err != nil {
		return err
	}
	var built, whole, again, cpu []time.Duration
	for n := range b.rounds {
		root := b.path(fmt.Sprintf("root-many-%d", n))
		for second := range 2 {
			b.registry.line.set(true)
			m, err := b.mount(img, root)
			if err != nil {
				return err
			}
			took := m.ready.Sub(m.began)
			if err := m.close(); err != nil {
				return err
			}
			if second == 1 {
				again = append(again, took)
			} else {
				whole = append(whole, took)
				built, cpu = append(built, m.ready.Sub(b.registry.line.count(nil).last)), append(cpu, m.cpu())
			}
		}
		if err := os.RemoveAll(root); err != nil {
			return err
		}
	}
	row(fmt.Sprintf("metadata of %d files in one layer, from the last byte of the table of contents to the mount", manyFiles),
		fmt.Sprintf("%s (%s from the command on, %s of processors)", ms(median(built)), ms(median(whole)), ms(median(cpu))), "", "", "under 1 s")
	row("the same mounted again from the cache", ms(median(again)), "", "", "under 150 ms")
	return nil
}
