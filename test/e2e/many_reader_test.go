package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/mem"
)

// manyEnv makes the test binary a process of many readers, a thread each.
const manyEnv = "LACUNA_E2E_MANY"

// manyOrder says what they read: 4096 bytes each, from Off on every Step.
type manyOrder struct {
	Path      string
	Off, Step int64
	Readers   int
}

// beMany begins all reads at once, and tells how many gave the right bytes.
func beMany() {
	text := os.Getenv(manyEnv)
	if text == "" {
		return
	}
	var o manyOrder
	err := json.Unmarshal([]byte(text), &o)
	var f *os.File
	if err == nil {
		f, err = os.Open(o.Path)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	debug.SetMaxThreads(o.Readers + 1000)
	var all sync.WaitGroup
	var mu sync.Mutex
	right := 0
	for n := range o.Readers {
		all.Go(func() {
			off := o.Off + int64(n)*o.Step
			got, want := make([]byte, 4096), make([]byte, 4096)
			_, err := f.ReadAt(got, off)
			if _, never := mem.PatternAt(stormSeed).ReadAt(want, off); errors.Join(err, never) != nil || !bytes.Equal(got, want) {
				fmt.Fprintf(os.Stderr, "read at %d: %v\n", off, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			right++
		})
	}
	all.Wait()
	fmt.Println(right)
	os.Exit(0)
}

// many is a running process of many readers.
type many struct {
	cmd *exec.Cmd
	out io.Reader
}

func startMany(t *testing.T, o manyOrder) *many {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	m := &many{cmd: exec.Command(exe)}
	m.cmd.Env = append(os.Environ(), manyEnv+"="+string(order))
	m.cmd.Stderr = os.Stderr
	if m.out, err = m.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.cmd.ProcessState == nil {
			_ = m.cmd.Process.Kill()
			_ = m.cmd.Wait()
		}
	})
	return m
}

// right waits for the end and returns how many gave the right bytes.
func (m *many) right(t *testing.T) (n int) {
	t.Helper()
	if _, err := fmt.Fscan(m.out, &n); err != nil {
		t.Errorf("readers: %v", err)
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("readers: %v", err)
	}
	return n
}
