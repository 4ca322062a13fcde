package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// commands are what the scripts have besides testscript's own:
//
//	serve NAME SIZE [option ...]  start a server of $WORK/NAME.bin, made of SIZE random bytes; its URL is $NAME
//	server NAME option ...        change it; options: see serverOption
//	start NAME lacuna ...         run until it has printed "ready"; its output goes to NAME.stdout and NAME.stderr
//	end NAME  [INT|TERM|none] [STATUS] signal it, wait for it, expect the status (0)
//	exits STATUS command ...      run it to its end, expect the status
//	pread FILE OFFSET LENGTH WANT [!] read from FILE and compare with the file WANT; ! pread: expect EIO
//	same FILE1 FILE2              compare bytes
//	punch FILE OFFSET LENGTH      make a hole
//	json PATH VALUE               compare a value of the last standard output: attached.0.misses 1
//	jsonpid PATH                  the process in the last standard output lives
//	nothing-mounted [FILE ...]    no mount, and none of the files
//	nothing-left [FILE ...]       nor a record or an object
//	hold FILE                     have it open in a process `holder` until: release
//	release
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"serve": cmdServe, "server": cmdServer, "start": cmdStart, "end": cmdEnd, "exits": cmdExits,
		"pread": cmdPread, "same": cmdSame, "punch": cmdPunch, "json": cmdJSON, "jsonpid": cmdJSONPID,
		"nothing-left": cmdNothingLeft, "hold": cmdHold, "release": cmdRelease, "nosecret": cmdNoSecret,
		"nothing-mounted": func(ts *testscript.TestScript, _ bool, args []string) {
			nothingMounted(ts, args)
		},
	}
}

func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	data := make([]byte, size)
	_, err = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", args[0])))).Read(data)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(w.dir, args[0]+".bin"), data, 0o644))
	s := &server{Server: sourcetest.NewServer(w.t, data)}
	s.http = httptest.NewServer(s.Server)
	w.servers[args[0]] = s
	ts.Setenv(args[0], s.http.URL+"/file")
	ts.Setenv(args[0]+"_host", strings.TrimPrefix(s.http.URL, "http://"))
	for _, option := range args[2:] {
		s.option(ts, option)
	}
}

func cmdServer(ts *testscript.TestScript, _ bool, args []string) {
	s := worldOf(ts).servers[args[0]]
	for _, option := range args[1:] {
		s.option(ts, option)
	}
}

func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	name := args[0]
	program, err := exec.LookPath(args[1])
	ts.Check(err)
	p := &process{cmd: exec.Command(program, args[2:]...), ended: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = ts.MkAbs("."), environ(ts)
	ready := make(chan struct{})
	var once sync.Once
	var copies sync.WaitGroup
	for i, open := range []func() (io.ReadCloser, error){p.cmd.StdoutPipe, p.cmd.StderrPipe} {
		pipe, err := open()
		ts.Check(err)
		file, err := os.Create(filepath.Join(w.dir, name+[]string{".stdout", ".stderr"}[i]))
		ts.Check(err)
		copies.Go(func() {
			defer file.Close()
			lines := bufio.NewReader(pipe)
			for {
				line, err := lines.ReadString('\n')
				if _, failed := file.WriteString(line); failed != nil || err != nil {
					return
				}
				if strings.TrimSpace(line) == "ready" || strings.Contains(line, "msg=ready") || strings.Contains(line, `"msg":"ready"`) {
					once.Do(func() { close(ready) })
				}
			}
		})
	}
	ts.Check(p.cmd.Start())
	go func() {
		copies.Wait()
		// The status is asked of ProcessState.
		if err := p.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			w.t.Error(err)
		}
		close(p.ended)
	}()
	w.started[name] = p
	select {
	case <-ready:
	case <-p.ended:
		delete(w.started, name)
		ts.Fatalf("%s ended before it was ready: %v\n%s", name, p.cmd.ProcessState, ts.ReadFile(name+".stderr"))
	}
}

func cmdEnd(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	p := w.started[args[0]]
	if p == nil {
		ts.Fatalf("%s was not started", args[0])
	}
	signal, want := syscall.SIGINT, 0
	for _, arg := range args[1:] {
		switch arg {
		case "INT":
		case "TERM":
			signal = syscall.SIGTERM
		case "none":
			signal = 0
		default:
			n, err := strconv.Atoi(arg)
			ts.Check(err)
			want = n
		}
	}
	if signal != 0 {
		ts.Check(p.cmd.Process.Signal(signal))
	}
	<-p.ended
	delete(w.started, args[0])
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("%s: exit status %d, want %d\n%s", args[0], got, want, ts.ReadFile(args[0]+".stderr"))
	}
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func cmdPread(ts *testscript.TestScript, neg bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	got, err := readAt(ts.MkAbs(args[0]), off, n)
	if neg {
		if !errors.Is(err, syscall.EIO) {
			ts.Fatalf("read %s: %v, want EIO", args[0], err)
		}
		return
	}
	ts.Check(err)
	want, err := readAt(ts.MkAbs(args[3]), off, n)
	ts.Check(err)
	if !bytes.Equal(got, want) {
		ts.Fatalf("%s and %s differ in [%d,+%d)", args[0], args[3], off, n)
	}
}

func readAt(name string, off int64, n int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, n)
	_, err = f.ReadAt(buf, off)
	return buf, err
}

func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	if same := ts.ReadFile(args[0]) == ts.ReadFile(args[1]); same == neg {
		ts.Fatalf("%s and %s: same is %t", args[0], args[1], same)
	}
}

func cmdPunch(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	n, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	defer f.Close()
	// FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE (include/uapi/linux/falloc.h).
	ts.Check(syscall.Fallocate(int(f.Fd()), 1|2, off, n))
}

// field finds a dotted path in the last standard output.
func field(ts *testscript.TestScript, path string) any {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for _, key := range strings.Split(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n >= len(at) {
				ts.Fatalf("no element %s of %d", key, len(at))
			}
			v = at[n]
		default:
			ts.Fatalf("%s: nothing at %s", path, key)
		}
	}
	return v
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	v := field(ts, args[0])
	if n, ok := v.(float64); ok {
		v = strconv.FormatFloat(n, 'f', -1, 64)
	}
	if got := fmt.Sprint(v); (got == args[1]) == neg {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}

func cmdJSONPID(ts *testscript.TestScript, _ bool, args []string) {
	pid, ok := field(ts, args[0]).(float64)
	if !ok || pid < 2 {
		ts.Fatalf("%s is no process id", args[0])
	}
	ts.Check(syscall.Kill(int(pid), 0))
}

func cmdNothingLeft(ts *testscript.TestScript, _ bool, args []string) {
	nothingMounted(ts, args)
	for _, pattern := range []string{"served/*", "served/.*", "objects/*/*", "partial/*"} {
		found, err := filepath.Glob(filepath.Join(ts.Getenv("LACUNA_ROOT"), pattern))
		ts.Check(err)
		if len(found) > 0 {
			ts.Fatalf("left behind: %v", found)
		}
	}
}

func nothingMounted(ts *testscript.TestScript, names []string) {
	w := worldOf(ts)
	for _, name := range names {
		if _, err := os.Lstat(ts.MkAbs(name)); !errors.Is(err, os.ErrNotExist) {
			ts.Fatalf("%s: %v, want it not to exist", name, err)
		}
	}
	if points := mountsBelow(w.t, w.dir); len(points) > 0 {
		ts.Fatalf("mounted: %v", points)
	}
}

// cmdNoSecret: what was printed last, and the files named, have none of the words
// hush and mum in them.
func cmdNoSecret(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range append([]string{"stdout", "stderr"}, args...) {
		text := ts.ReadFile(name)
		for _, secret := range []string{"hush", "mum"} {
			if strings.Contains(text, secret) {
				ts.Fatalf("%s tells %q:\n%s", name, secret, text)
			}
		}
	}
}

func cmdHold(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	cmd := exec.Command("cat") // waits for its standard input to end
	cmd.ExtraFiles = []*os.File{f}
	in, err := cmd.StdinPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	w.holder = &process{cmd: cmd, ended: make(chan struct{})}
	w.t.Cleanup(func() { in.Close() })
	go func() {
		if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			w.t.Error(err)
		}
		close(w.holder.ended)
	}()
}

func cmdRelease(ts *testscript.TestScript, _ bool, _ []string) {
	w := worldOf(ts)
	ts.Check(w.holder.cmd.Process.Kill())
	<-w.holder.ended
	w.holder = nil
}
