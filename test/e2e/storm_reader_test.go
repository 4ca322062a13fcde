package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/mem"
)

// stormEnv makes the test binary a storm reader.
const stormEnv = "LACUNA_E2E_STORM_READER"

// stormOrder says what a storm reader reads.
type stormOrder struct {
	Path    string
	Pattern uint64 // seed of the mem.PatternAt that the file has
	Size    int64
	Readers int
	Longest int // bytes of a read
	Seed    uint64
	// Against, where it is not empty, is a file with the right bytes.
	Against string
	// Once: each reader reads every piece of Longest bytes once, in random
	// order, and ends.
	Once bool

	right io.ReaderAt
}

// stormTally is what came of it.
type stormTally struct {
	Reads, Bytes int64
	EIO          int64
	Wrong        int64 // reads with bytes that are not the source's
	ZeroBlocks   int64 // blocks of zeros in them
	Other        int64 // other errors, short reads
	Slowest      time.Duration
	Examples     []string
}

func (s *stormTally) add(o stormTally) {
	s.Reads += o.Reads
	s.Bytes += o.Bytes
	s.EIO += o.EIO
	s.Wrong += o.Wrong
	s.ZeroBlocks += o.ZeroBlocks
	s.Other += o.Other
	s.Slowest = max(s.Slowest, o.Slowest)
	s.Examples = append(s.Examples, o.Examples...)
}

func (s *stormTally) String() string {
	return fmt.Sprintf("%d reads, %d MiB compared, %d wrong, %d zero blocks, %d EIO, %d other errors, slowest read %v",
		s.Reads, s.Bytes>>20, s.Wrong, s.ZeroBlocks, s.EIO, s.Other, s.Slowest.Round(time.Millisecond))
}

// beStormReader reads and compares until standard input ends, then tells the tally.
func beStormReader() {
	text := os.Getenv(stormEnv)
	if text == "" {
		return
	}
	var o stormOrder
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	o.right = mem.PatternAt(o.Pattern)
	if o.Against != "" {
		f, err := os.Open(o.Against)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		o.right = f
	}
	tallies := make([]stormTally, o.Readers)
	var all sync.WaitGroup
	for n := range tallies {
		all.Go(func() { tallies[n].read(o, n, end) })
	}
	all.Wait()
	var sum stormTally
	for _, s := range tallies {
		sum.add(s)
	}
	if err := json.NewEncoder(os.Stdout).Encode(sum); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func (s *stormTally) read(o stormOrder, n int, end <-chan struct{}) {
	rng := rand.New(rand.NewPCG(o.Seed, uint64(n)))
	f, err := os.Open(o.Path)
	if err != nil {
		s.other(err.Error())
		return
	}
	defer func() { _ = f.Close() }()
	buf, want := make([]byte, o.Longest), make([]byte, o.Longest)
	order := rng.Perm(int((o.Size + int64(o.Longest) - 1) / int64(o.Longest)))
	for {
		select {
		case <-end:
			return
		default:
		}
		length := 1 + rng.IntN(o.Longest)
		off := rng.Int64N(o.Size - int64(length) + 1)
		if o.Once {
			if len(order) == 0 {
				return
			}
			off = int64(order[0]) * int64(o.Longest)
			length, order = int(min(int64(o.Longest), o.Size-off)), order[1:]
		}
		p := buf[:length]
		for i := range p {
			p[i] = 0xa5
		}
		began := time.Now()
		got, err := f.ReadAt(p, off)
		s.Slowest = max(s.Slowest, time.Since(began))
		s.Reads++
		// What came before an error must be right as well.
		s.compare(o, off, p[:got], want[:got])
		switch {
		case errors.Is(err, syscall.EIO):
			s.EIO++
			s.example(fmt.Sprintf("EIO at [%d,+%d) after %v", off, length, time.Since(began)))
		case err != nil:
			s.other(err.Error())
		}
	}
}

func (s *stormTally) compare(o stormOrder, off int64, got, want []byte) {
	if _, err := o.right.ReadAt(want, off); err != nil && !errors.Is(err, io.EOF) {
		s.other(err.Error())
		return
	}
	s.Bytes += int64(len(got))
	if bytes.Equal(got, want) {
		return
	}
	s.Wrong++
	first := 0
	for got[first] == want[first] {
		first++
	}
	zeros := int64(0)
	for at := (4096 - off%4096) % 4096; at+4096 <= int64(len(got)); at += 4096 {
		if len(bytes.Trim(got[at:at+4096], "\x00")) == 0 {
			zeros++
		}
	}
	s.ZeroBlocks += zeros
	s.example(fmt.Sprintf("wrong from %d in [%d,+%d): % x, not % x; %d zero blocks",
		off+int64(first), off, len(got), got[first:min(first+8, len(got))], want[first:min(first+8, len(got))], zeros))
}

func (s *stormTally) other(text string) {
	s.Other++
	s.example(text)
}

func (s *stormTally) example(text string) {
	if len(s.Examples) < 5 {
		s.Examples = append(s.Examples, time.Now().Format("15:04:05.000000 ")+text)
	}
}

// storm is a running storm reader.
type storm struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Closer
	out bytes.Buffer
}

func startStorm(t *testing.T, o stormOrder) *storm {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &storm{t: t, cmd: exec.Command(exe)}
	s.cmd.Env = append(os.Environ(), stormEnv+"="+string(order))
	s.cmd.Stdout, s.cmd.Stderr = &s.out, os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
	})
	return s
}

// finish lets the reads that have begun end, and returns what came of all. A
// reader that does not come back within limit hangs.
func (s *storm) finish(limit time.Duration) stormTally {
	s.t.Helper()
	_ = s.in.Close()
	return s.wait(limit)
}

// wait is finish for readers that end by themselves.
func (s *storm) wait(limit time.Duration) stormTally {
	s.t.Helper()
	late := time.AfterFunc(limit, func() { _ = s.cmd.Process.Kill() })
	err := s.cmd.Wait()
	if !late.Stop() {
		s.t.Fatalf("readers hang: they have not come back after %v", limit)
	}
	if err != nil {
		s.t.Fatalf("the readers ended: %v", err)
	}
	var tally stormTally
	if err := json.Unmarshal(s.out.Bytes(), &tally); err != nil {
		s.t.Fatalf("read the tally %q: %v", s.out.String(), err)
	}
	return tally
}
