package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"testing"
	"time"
)

// readersEnv makes the test binary a process of readers. Its value is the path
// of an order.
const readersEnv = "LACUNA_IMAGE_READERS"

// readable is a file with what is right of it.
type readable struct {
	Path string
	Size int64
	Sum  [sha256.Size]byte
}

// order says what readers read.
type order struct {
	Dir     string
	Files   []readable
	Readers int
	Seed    uint64
	// Once: each file is read once by one reader, and they end; Each: by each reader.
	// Otherwise they read files at random until standard input ends.
	Once, Each bool
}

// tally is what came of it.
type tally struct {
	Reads, Bytes int64
	Wrong        int64 // files of which wrong bytes were read
	EIO, Other   int64
	Slowest      time.Duration
	Examples     []string
}

func (s *tally) String() string {
	return fmt.Sprintf("%d files read, %d MiB compared, %d wrong, %d EIO, %d other errors, slowest %v",
		s.Reads, s.Bytes>>20, s.Wrong, s.EIO, s.Other, s.Slowest.Round(time.Millisecond))
}

func (s *tally) add(o tally) {
	s.Reads, s.Bytes, s.Wrong, s.EIO, s.Other = s.Reads+o.Reads, s.Bytes+o.Bytes, s.Wrong+o.Wrong, s.EIO+o.EIO, s.Other+o.Other
	s.Slowest = max(s.Slowest, o.Slowest)
	s.Examples = append(s.Examples, o.Examples...)
}

// beReaders reads until it is done, tells the tally, and ends the process.
func beReaders() {
	path := os.Getenv(readersEnv)
	if path == "" {
		return
	}
	text, err := os.ReadFile(path)
	var o order
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	tallies := make([]tally, o.Readers)
	var all sync.WaitGroup
	for n := range tallies {
		all.Go(func() { tallies[n].readAll(o, n, end) })
	}
	all.Wait()
	var sum tally
	for _, s := range tallies {
		sum.add(s)
	}
	if json.NewEncoder(os.Stdout).Encode(sum) != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func (s *tally) readAll(o order, n int, end <-chan struct{}) {
	rng := rand.New(rand.NewPCG(o.Seed, uint64(n)))
	buf := make([]byte, 64<<10)
	if o.Once || o.Each {
		for _, i := range rng.Perm(len(o.Files)) {
			if o.Each || i%o.Readers == n {
				s.read(o.Dir, o.Files[i], buf)
			}
		}
		return
	}
	for {
		select {
		case <-end:
			return
		default:
			s.read(o.Dir, o.Files[rng.IntN(len(o.Files))], buf)
		}
	}
}

// read reads a file. What comes before an error must be right too, which only
// whole files can tell: those that fail are read again at the end of a test.
func (s *tally) read(dir string, r readable, buf []byte) {
	began := time.Now()
	s.Reads++
	err := func() error {
		f, err := os.Open(filepath.Join(dir, r.Path))
		if err != nil {
			return err
		}
		h := sha256.New()
		n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, buf)
		s.Bytes += n
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if n != r.Size || !bytes.Equal(h.Sum(nil), r.Sum[:]) {
			s.Wrong++
			s.example("wrong bytes in " + r.Path)
		}
		return nil
	}()
	s.Slowest = max(s.Slowest, time.Since(began))
	switch {
	case errors.Is(err, syscall.EIO):
		s.EIO++
		s.example(fmt.Sprintf("%v after %v", err, time.Since(began)))
	case err != nil:
		s.Other++
		s.example(err.Error())
	}
}

func (s *tally) example(text string) {
	if len(s.Examples) < 5 {
		s.Examples = append(s.Examples, time.Now().Format("15:04:05.000 ")+text)
	}
}

// filesOf are the regular files of a tree, by name.
func filesOf(n *node) []readable {
	var files []readable
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		if n.mode&syscall.S_IFMT == syscall.S_IFREG {
			files = append(files, readable{path, n.size, n.sum})
		}
		for name, c := range n.children {
			walk(filepath.Join(path, name), c)
		}
	}
	walk("", n)
	sort.Slice(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	return files
}

// readers is a running process of readers.
type readers struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.Closer
	out bytes.Buffer
}

func startReaders(t testing.TB, o order) *readers {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "order")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &readers{t: t, cmd: exec.Command(exe)}
	r.cmd.Env = append(os.Environ(), readersEnv+"="+path)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, os.Stderr
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait()
		}
	})
	return r
}

// finish lets readers end what they have begun; wait is for those that end by
// themselves. Who does not within limit hangs.
func (r *readers) finish(limit time.Duration) tally {
	r.t.Helper()
	_ = r.in.Close()
	return r.wait(limit)
}

func (r *readers) wait(limit time.Duration) tally {
	r.t.Helper()
	late := time.AfterFunc(limit, func() { _ = r.cmd.Process.Kill() })
	err := r.cmd.Wait()
	if !late.Stop() {
		r.t.Fatalf("readers hang: they have not ended after %v", limit)
	}
	var sum tally
	if err == nil {
		err = json.Unmarshal(r.out.Bytes(), &sum)
	}
	if err != nil {
		r.t.Fatalf("readers: %v", err)
	}
	r.t.Log(sum.String())
	return sum
}

// wantRight wants all to have been right.
func (s *tally) wantRight(t testing.TB) {
	t.Helper()
	if s.Wrong+s.EIO+s.Other > 0 {
		t.Errorf("%s\n%q", s, s.Examples)
	}
}

// readOnce reads all files once with many readers.
func readOnce(t testing.TB, dir string, files []readable, n int) tally {
	t.Helper()
	return startReaders(t, order{Dir: dir, Files: files, Readers: n, Seed: 1, Once: true}).wait(3 * time.Minute)
}
