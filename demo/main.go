// Command demo shows what Lacuna is for: it makes a container image on the spot,
// serves it from a registry on this machine, mounts it with bin/lacuna, runs
// programs out of it, and tells how little of it had to be fetched for that.
//
//	demo [-lacuna bin/lacuna] [-size MIB] [-dir DIR] [-root machine|debian] [-latency 10ms] [-rate 50] [-keep]
//
// The image is made twice of the same files: as eStargz, whose layers can be read
// at any place, and as ordinary gzip, whose layers have to be downloaded whole.
// The files are programs and libraries of this machine, so that nothing has to be
// downloaded first; -root debian takes those of a Debian root filesystem instead,
// which debootstrap makes in another half a minute.
//
// It is a program beside the binary, which has no use for a registry and for what
// makes images. It takes away again whatever it has made, also when it fails or
// is interrupted, and then within a minute.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// patience bounds the whole demo.
const patience = 5 * time.Minute

type options struct {
	lacuna  string
	dir     string
	root    string // "machine": this machine's files; "debian": debootstrap's
	size    int64  // bytes of files in the image, about
	latency time.Duration
	rate    int64 // bytes a second
	linger  bool  // the registry, until it is interrupted
}

func main() {
	var o options
	flag.StringVar(&o.lacuna, "lacuna", "bin/lacuna", "the binary to show")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to work, on ext4, xfs or btrfs")
	flag.StringVar(&o.root, "root", "machine", "what the image is made of: files of this machine, or debian (needs debootstrap and a mirror)")
	mib := flag.Int64("size", 210, "size of the image's files in MiB, about")
	flag.DurationVar(&o.latency, "latency", 10*time.Millisecond, "how long the registry thinks about each request")
	mbs := flag.Int64("rate", 50, "how many MB the registry sends in a second, over all requests")
	flag.BoolVar(&o.linger, "keep", false, "keep the registry in the end, to go on by hand, until Ctrl-C")
	flag.Parse()
	o.size, o.rate = *mib<<20, *mbs*1_000_000

	// The lacuna processes are asked to end when the thread that started them does
	// (PR_SET_PDEATHSIG(2const)), so it has to be one that lasts.
	runtime.LockOSThread()
	// A reader of the output that goes away makes writes fail, and no more.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if o.size < 1 || o.rate < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := run(limited, o, os.Stdout, ctx.Done())
	switch {
	case err == nil:
		return
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	os.Exit(1)
}

// demo is one run.
type demo struct {
	options
	out  io.Writer
	work string // everything that it makes lies below
	line *line
	// until is closed when somebody ends the demo.
	until <-chan struct{}
}

// run is the whole program.
func run(ctx context.Context, o options, out io.Writer, until <-chan struct{}) error {
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root")
	}
	work, err := os.MkdirTemp(o.dir, "lacuna-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	d := &demo{options: o, out: out, work: work, line: &line{latency: o.latency, rate: o.rate}, until: until}
	summary, err := d.prepared(ctx)
	if err := errors.Join(err, sweep(work), os.RemoveAll(work)); err != nil {
		return err
	}
	return d.say("\nthe same bytes in both; unmounted, ended and removed again\n%s", summary)
}

// prepared shows all once there is what it needs.
func (d *demo) prepared(ctx context.Context) (summary string, err error) {
	// What makes eStargz layers has temporary files of its own.
	if err := os.Setenv("TMPDIR", d.work); err != nil {
		return "", err
	}
	// Under a name of its own, the demo's processes can be told from others.
	binary := filepath.Join(d.work, "lacuna")
	if err := linkOrCopy(d.lacuna, binary); err != nil {
		return "", err
	}
	d.lacuna = binary
	return d.show(ctx)
}

func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("find the binary to show: %w", err)
	}
	return os.WriteFile(to, data, 0o755)
}
