// Command bench measures Lacuna beside what else can read a file behind HTTP:
// curl to the same disk, a plain file, rclone mount, ext4, mkfs.erofs and SOCI. Every figure is a ratio
// of things measured by turns in one run, so that a slow or busy machine slows
// both sides. It prints a Markdown table.
//
//	go run ./bench [-size MiB] [-rounds N] [-lacuna bin/lacuna] [-soci bin/soci-files] [-dir /var/tmp] [-only name,name] [-keep DIR] [-trace]
//
// It needs root, nginx, curl, and for the comparison rclone, fusermount3 and what `make soci` builds.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type options struct {
	size   int64 // bytes of the file that is read
	rounds int
	lacuna string
	soci   string
	dir    string
	only   string
	keep   string
	trace  bool
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == beMeasurer {
		if err := measure(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: measure:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	mib := flag.Int64("size", 1024, "size of the file in MiB")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the median counts")
	flag.StringVar(&o.lacuna, "lacuna", "bin/lacuna", "the binary to measure")
	flag.StringVar(&o.soci, "soci", "bin/soci-files", "the program of tools/soci that index building is compared with")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to work, on ext4, xfs or btrfs")
	flag.StringVar(&o.only, "only", "", "measure only these, by name, separated by commas")
	flag.StringVar(&o.keep, "keep", "", "directory that keeps the images for the next run; building them takes minutes")
	flag.BoolVar(&o.trace, "trace", false, "tell each request of python's image on standard error")
	flag.Parse()
	o.size = *mib << 20
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measurement is one row or more of the table.
type measurement struct {
	name string
	web  bool // it reads the file behind nginx
	run  func(*bench) error
}

func run(o options) (err error) {
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer func() {
		if e := b.close(); err == nil {
			err = e
		}
	}()
	fmt.Println("| what | Lacuna | beside it | ratio | goal |")
	fmt.Println("|---|---|---|---|---|")
	for _, m := range []measurement{
		{"sequential", true, coldSequential},
		{"complete", true, completeObject},
		{"event", true, presentEvent},
		{"miss", true, missLatency},
		{"memory", true, residentMemory},
		{"rclone", true, besideRclone},
		{"firstbyte", false, firstByte},
		{"metadata", false, metadata},
		{"python", false, python},
		{"index", false, indexing},
		{"present", false, presentFiles},
		{"find", false, findAll},
		{"readahead", false, readAheads},
	} {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), m.name) {
			continue
		}
		if m.web && b.nginx == nil {
			if err := b.startServer(); err != nil {
				return err
			}
		}
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

func row(what, ours, beside, ratio, goal string) {
	fmt.Printf("| %s | %s | %s | %s | %s |\n", what, ours, beside, ratio, goal)
}

// median of durations; the slice is sorted.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", d.Seconds()*1000) }

func us(d time.Duration) string { return fmt.Sprintf("%.0f µs", d.Seconds()*1e6) }

func rate(n int64, d time.Duration) string {
	return fmt.Sprintf("%s (%.0f MB/s)", ms(d), float64(n)/1e6/d.Seconds())
}

func ratio(a, b time.Duration) string { return fmt.Sprintf("%.2f", a.Seconds()/b.Seconds()) }

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
