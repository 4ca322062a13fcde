package e2e

import (
	"bufio"
	"bytes"
	"context"
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

	"github.com/lacunafs/lacuna/devnode"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/test/instance"
)

// daemonEnv makes the test binary an external daemon. It must be a process
// beside the readers: those below a daemon are let through.
const daemonEnv = "LACUNA_E2E_DAEMON"

// What an own daemon does with a request.
const (
	fills  = "fills"
	lies   = "lies" // says done and writes nothing
	sleeps = "sleeps"
	fails  = "fails" // with ENOSPC
	keeps  = "keeps" // fills, and leaves the file open to read and write
)

type daemonOrder struct {
	Socket, Dir string
	Pattern     uint64
	Behaviour   string
	Delay       time.Duration // at most, before each answer
}

// beDaemon fills files with their pattern until it is killed.
func beDaemon() {
	text := os.Getenv(daemonEnv)
	if text == "" {
		return
	}
	var o daemonOrder
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		err = o.serve()
	}
	fmt.Fprintln(os.Stderr, "daemon:", err)
	os.Exit(1)
}

func (o daemonOrder) serve() error {
	c, err := devnode.Dial(o.Socket)
	if err != nil {
		return err
	}
	if err := c.Bind(o.Dir, "e2e"); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		q, err := c.Next(context.Background())
		if err != nil {
			return err
		}
		go func() {
			err := o.answer(c, q)
			// A request that has ended meanwhile, in a worker that has died, is refused.
			if refused := new(devnode.RefusedError); err != nil && !errors.As(err, &refused) {
				fmt.Fprintln(os.Stderr, "daemon:", err)
			}
		}()
	}
}

func (o daemonOrder) answer(c *devnode.Client, q devnode.Request) error {
	if o.Delay > 0 {
		instance.Pause(rand.N(o.Delay))
	}
	switch o.Behaviour {
	case sleeps:
		return nil
	case fails:
		return c.Fail(q.ID, syscall.ENOSPC)
	case keeps:
		if _, err := syscall.Open(o.Dir+"/"+q.Path, syscall.O_RDWR, 0); err != nil {
			return err
		}
		fallthrough
	case fills:
		f, err := os.OpenFile(o.Dir+"/"+q.Path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		from := io.NewSectionReader(mem.PatternAt(o.Pattern), q.Off, q.Len)
		_, err = io.CopyN(io.NewOffsetWriter(f, q.Off), from, q.Len)
		if err := errors.Join(err, f.Close()); err != nil {
			return errors.Join(err, c.Fail(q.ID, syscall.EIO))
		}
	}
	return c.Done(q.ID)
}

// output is what a process has written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds to it.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// program is a process that prints ready and runs until it is killed.
type program struct {
	*exec.Cmd
	told output
}

// tryLaunch starts a program and waits for its first line.
func tryLaunch(t *testing.T, env string, argv ...string) (*program, error) {
	t.Helper()
	p := &program{Cmd: exec.Command(argv[0], argv[1:]...)}
	if env != "" {
		p.Env = append(os.Environ(), env)
	}
	p.Stderr = &p.told
	p.WaitDelay = time.Second
	// Its children go with it.
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%v said: %s", argv, p.told.String())
		}
	})
	late := time.AfterFunc(time.Minute, func() { _ = p.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	late.Stop()
	if line != "ready\n" {
		p.kill()
		return p, errors.Join(fmt.Errorf("%v said %q: %s", argv, line, p.told.String()), err)
	}
	return p, nil
}

func launch(t *testing.T, env string, argv ...string) *program {
	t.Helper()
	p, err := tryLaunch(t, env, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// kill ends the program and its children with SIGKILL.
func (p *program) kill() {
	if p.ProcessState != nil {
		return
	}
	_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
	_ = p.Wait()
}

func (o daemonOrder) env(t *testing.T) string {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return daemonEnv + "=" + string(b)
}
