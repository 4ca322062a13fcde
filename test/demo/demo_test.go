// Package demo runs what `make demo` runs, with a small image, and looks for what
// it leaves behind: also when it is interrupted, fails or is killed.
package demo

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

func TestMain(m *testing.M) { instance.Main(m) }

// limit bounds a run; an idle machine takes seconds.
const limit = 3 * time.Minute

// build builds the demo as name.
func build(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", name, "github.com/lacunafs/lacuna/demo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the demo: %v\n%s", err, out)
	}
}

// place is where a demo works.
type place struct {
	*instance.Instance
	program string
}

// demo is the program with a small image.
func (p place) demo(ctx context.Context, lacuna string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.program, "-lacuna", lacuna, "-dir", p.Dir, "-size", "40", "-latency", "1ms", "-rate", "200")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// left is what a demo has left behind.
func (p place) left() error {
	if pids := instance.ProcessesOf(p.Dir); len(pids) > 0 {
		return fmt.Errorf("processes %v", pids)
	}
	if points := instance.MountsBelow(p.Dir); len(points) > 0 {
		return fmt.Errorf("mounts %v", points)
	}
	files, err := filepath.Glob(filepath.Join(p.Dir, "lacuna-demo-*"))
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("files %v", files)
	}
	return err
}

func TestDemo(t *testing.T) {
	instance.NeedKernel(t)
	program := filepath.Join(instance.Dir(t), "demo")
	build(t, program)
	for name, test := range map[string]func(*testing.T, place){
		"image":   showsAnImage,
		"file":    showsAFile,
		"failing": passesOnTheStatus,
		"killed":  isUnmountedWhenKilled,
	} {
		t.Run(name, func(t *testing.T) { test(t, place{instance.New(t, ""), program}) })
	}
	for at, sig := range map[string]syscall.Signal{
		"making": syscall.SIGINT, "requests": syscall.SIGTERM, "ready": syscall.SIGHUP, "bash": syscall.SIGINT,
	} {
		t.Run("interrupted/"+at, func(t *testing.T) { isInterrupted(t, place{instance.New(t, ""), program}, at, sig) })
	}
}

var sum = regexp.MustCompile(`\nbash ran after \S+ m?s with (\S+) of (\S+) MiB fetched; as gzip after \S+ m?s, with (\S+) of (\S+) MiB\n$`)

func showsAnImage(t *testing.T, p place) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := p.demo(ctx, p.Bin).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	m := sum.FindStringSubmatch(string(out))
	if m == nil || m[1] == m[2] || m[3] != m[4] {
		t.Errorf("it does not sum up that bash needs a part of an eStargz image, and all of a gzip one")
	}
	if !strings.Contains(string(out), "chroot bash      bash ") {
		t.Error("it does not show what bash said")
	}
	if err := p.left(); err != nil {
		t.Error(err)
	}
}

func showsAFile(t *testing.T, p place) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Bin, "demo", "--size", "16", "--dir", p.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.HasSuffix(out, []byte("\ndetached: nothing is left behind\n")) {
		t.Errorf("%v\n%s", err, out)
	}
	if err := p.left(); err != nil {
		t.Error(err)
	}
}

// A lacuna that cannot mount here says why, and the demo ends with its status.
func passesOnTheStatus(t *testing.T, p place) {
	fails := filepath.Join(p.Dir, "fails")
	if err := os.WriteFile(fails, []byte("#!/bin/sh\necho not supported >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := p.demo(ctx, fails).CombinedOutput()
	if instance.ExitOf(err) != 3 || !strings.Contains(string(out), "not supported\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := p.left(); err != nil {
		t.Error(err)
	}
}

// startUntil starts a demo and returns when a line has text.
func startUntil(t *testing.T, p place, text string) (cmd *exec.Cmd, told *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	cmd, told = p.demo(ctx, p.Bin), new(bytes.Buffer)
	cmd.Stderr = told
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return cmd, told
		}
	}
	t.Fatalf("it ended without saying %q: %v: %s", text, cmd.Wait(), told)
	return nil, nil
}

func isInterrupted(t *testing.T, p place, at string, sig syscall.Signal) {
	cmd, told := startUntil(t, p, at)
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Wait(); instance.ExitOf(err) != 1 || told.String() != "demo: interrupted\n" {
		t.Errorf("%v: %s", err, told)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %v to end", took)
	}
	if err := p.left(); err != nil {
		t.Error(err)
	}
}

// Its files have to stay then; nothing else does.
func isUnmountedWhenKilled(t *testing.T, p place) {
	cmd, told := startUntil(t, p, "ready")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); instance.ExitOf(err) != -1 {
		t.Errorf("%v: %s", err, told)
	}
	instance.Eventually(t, time.Minute, func() error {
		if err := p.left(); err != nil && !strings.HasPrefix(err.Error(), "files") {
			return err
		}
		return nil
	})
}
