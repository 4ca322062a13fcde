package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// ok fails the test unless err is nil.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// handlers is a Handler of functions; those that are not set fail.
type handlers struct {
	attach  func(context.Context, AttachRequest) (AttachReply, error)
	detach  func(context.Context, DetachRequest) error
	bind    func(context.Context, BindRequest) (BindReply, error)
	hydrate func(context.Context, HydrateRequest, func(Progress)) error
	status  func(context.Context) (Status, error)
}

func (h handlers) Attach(ctx context.Context, q AttachRequest) (AttachReply, error) {
	return h.attach(ctx, q)
}
func (h handlers) Mount(context.Context, MountRequest) (MountReply, error) { return MountReply{}, nil }
func (h handlers) Umount(context.Context, UmountRequest) error             { return nil }
func (h handlers) Detach(ctx context.Context, q DetachRequest) error       { return h.detach(ctx, q) }
func (h handlers) Bind(ctx context.Context, q BindRequest) (BindReply, error) {
	return h.bind(ctx, q)
}
func (h handlers) Hydrate(ctx context.Context, q HydrateRequest, progress func(Progress)) error {
	return h.hydrate(ctx, q, progress)
}
func (h handlers) Status(ctx context.Context) (Status, error) { return h.status(ctx) }
func (h handlers) Stop(context.Context) (StopReply, error) {
	return StopReply{Waits: []string{"/mnt: somebody"}}, nil
}

// serve runs a server of h on a new socket until the test ends.
func serve(t testing.TB, h Handler) (*Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	return serveAt(t, h, socket), socket
}

func serveAt(t testing.TB, h Handler, socket string) *Client {
	t.Helper()
	l, err := Listen(socket)
	ok(t, err)
	s := NewServer(h)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c, err := Dial(t.Context(), socket)
	ok(t, err)
	t.Cleanup(func() {
		c.Close()
		ok(t, s.Close())
		ok(t, <-served)
	})
	return c
}

func TestEveryVerbCrossesOver(t *testing.T) {
	ctx := t.Context()
	var got []any
	wantStatus := Status{
		Version: "v1", Root: "/r", KeeperPID: 1, WorkerPID: 2, Started: time.Unix(1e9, 0).UTC(), Foreground: true,
		Requests: Requests{Pending: 1, Filled: 2, Failed: 3, Expired: 4, Flushed: 5, Coalesced: 6, P50: 7, P99: 8},
		Attached: []Attached{{File: "/f", Object: "o", Size: 1 << 60, Verified: "yes", Error: "e"}},
		Bound:    []Bound{{Dir: "/d", DaemonPID: 9}}, Unguarded: []Unguarded{{Files: []string{"/f"}}}, Errors: []string{"x"},
	}
	wantAttach := AttachReply{Object: "o", Size: 1<<62 + 1, Notes: []string{"a", "b"}}
	wantBind := BindReply{Files: 3, Notes: []string{"c"}}
	c, _ := serve(t, handlers{
		attach: func(_ context.Context, q AttachRequest) (AttachReply, error) {
			got = append(got, q)
			return wantAttach, nil
		},
		detach: func(_ context.Context, q DetachRequest) error { got = append(got, q); return nil },
		bind:   func(_ context.Context, q BindRequest) (BindReply, error) { got = append(got, q); return wantBind, nil },
		status: func(context.Context) (Status, error) { return wantStatus, nil },
		hydrate: func(_ context.Context, q HydrateRequest, progress func(Progress)) error {
			got = append(got, q)
			for i := range int64(3) {
				progress(Progress{i, 3})
			}
			return nil
		},
	})
	attach, detach := AttachRequest{Source: "s", File: "/f\n\x01", SHA256: "00"}, DetachRequest{Path: "/p", Hydrate: true}
	bind, hydrate := BindRequest{Dir: "/d", Devnode: "/n"}, HydrateRequest{File: "/f"}
	if reply, err := c.Attach(ctx, attach); err != nil || !reflect.DeepEqual(reply, wantAttach) {
		t.Errorf("attach: %+v, %v", reply, err)
	}
	ok(t, c.Detach(ctx, detach))
	if reply, err := c.Stop(ctx); err != nil || !reflect.DeepEqual(reply.Waits, []string{"/mnt: somebody"}) {
		t.Errorf("stop: %+v, %v", reply, err)
	}
	if reply, err := c.Bind(ctx, bind); err != nil || !reflect.DeepEqual(reply, wantBind) {
		t.Errorf("bind: %+v, %v", reply, err)
	}
	if reply, err := c.Status(ctx); err != nil || !reflect.DeepEqual(reply, wantStatus) {
		t.Errorf("status: %+v, %v", reply, err)
	}
	var steps []Progress
	ok(t, c.Hydrate(ctx, hydrate, func(p Progress) { steps = append(steps, p) }))
	// A client that is slow misses steps, but not the last.
	if n := len(steps); n == 0 || steps[n-1] != (Progress{2, 3}) {
		t.Errorf("progress %v", steps)
	}
	if want := []any{attach, detach, bind, hydrate}; !reflect.DeepEqual(got, want) {
		t.Errorf("the handler got %+v, want %+v", got, want)
	}
}

func TestErrorsCrossOverWithHintAndExit(t *testing.T) {
	plain := errors.New("attach /f: something broke")
	full := &Error{Message: "attach /f: no such host", Hint: "check the name", Exit: ExitUnreachable}
	for _, c := range []struct {
		err  error
		want Error
	}{
		{plain, Error{Message: plain.Error(), Exit: ExitError}},
		{full, *full},
		{fmt.Errorf("wrapped: %w", full), *full},
	} {
		client, _ := serve(t, handlers{
			attach:  func(context.Context, AttachRequest) (AttachReply, error) { return AttachReply{Object: "x"}, c.err },
			detach:  func(context.Context, DetachRequest) error { return c.err },
			bind:    func(context.Context, BindRequest) (BindReply, error) { return BindReply{}, c.err },
			status:  func(context.Context) (Status, error) { return Status{}, c.err },
			hydrate: func(context.Context, HydrateRequest, func(Progress)) error { return c.err },
		})
		ctx := t.Context()
		for verb, call := range map[string]func() error{
			"attach":  func() error { _, err := client.Attach(ctx, AttachRequest{}); return err },
			"detach":  func() error { return client.Detach(ctx, DetachRequest{}) },
			"bind":    func() error { _, err := client.Bind(ctx, BindRequest{}); return err },
			"status":  func() error { _, err := client.Status(ctx); return err },
			"hydrate": func() error { return client.Hydrate(ctx, HydrateRequest{}, func(Progress) {}) },
		} {
			var got *Error
			if err := call(); !errors.As(err, &got) || *got != c.want {
				t.Errorf("%s: %+v, want %+v", verb, got, c.want)
			}
		}
	}
}

func TestHydrateIsToldAsItGoesOn(t *testing.T) {
	step := make(chan Progress)
	client, _ := serve(t, handlers{hydrate: func(_ context.Context, _ HydrateRequest, progress func(Progress)) error {
		for p := range step {
			progress(p)
		}
		return nil
	}})
	seen := make(chan Progress)
	done := make(chan error, 1)
	go func() { done <- client.Hydrate(t.Context(), HydrateRequest{}, func(p Progress) { seen <- p }) }()
	for i := range int64(5) {
		step <- Progress{i, 5}
		if got := <-seen; got.Present != i { // before the next step is taken
			t.Fatalf("got %+v", got)
		}
	}
	close(step)
	ok(t, <-done)
}

func TestErrorAfterProgress(t *testing.T) {
	client, _ := serve(t, handlers{hydrate: func(_ context.Context, _ HydrateRequest, progress func(Progress)) error {
		progress(Progress{1, 2})
		return &Error{Message: "corrupt", Exit: ExitCorrupt}
	}})
	steps := 0
	err := client.Hydrate(t.Context(), HydrateRequest{}, func(Progress) { steps++ })
	var got *Error
	if !errors.As(err, &got) || got.Exit != ExitCorrupt || steps != 1 {
		t.Errorf("%v after %d steps", err, steps)
	}
}

func TestClientThatGoesAwayCancels(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error, 1)
	wait := func(ctx context.Context) error {
		started <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	client, _ := serve(t, handlers{
		hydrate: func(ctx context.Context, _ HydrateRequest, progress func(Progress)) error {
			progress(Progress{0, 1})
			return wait(ctx)
		},
		attach: func(ctx context.Context, _ AttachRequest) (AttachReply, error) { return AttachReply{}, wait(ctx) },
	})
	for verb, call := range map[string]func(context.Context) error{
		"hydrate": func(ctx context.Context) error {
			return client.Hydrate(ctx, HydrateRequest{}, func(Progress) {})
		},
		"attach": func(ctx context.Context) error { _, err := client.Attach(ctx, AttachRequest{}); return err },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- call(ctx) }()
		<-started
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", verb, err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s, the handler: %v", verb, err)
		}
	}
}

func TestServerThatGoesAwayIsAnError(t *testing.T) {
	started := make(chan struct{})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket)
	ok(t, err)
	s := NewServer(handlers{hydrate: func(ctx context.Context, _ HydrateRequest, progress func(Progress)) error {
		progress(Progress{0, 1})
		close(started)
		<-ctx.Done()
		return ctx.Err()
	}})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client, err := Dial(t.Context(), socket)
	ok(t, err)
	done := make(chan error, 1)
	go func() { done <- client.Hydrate(t.Context(), HydrateRequest{}, func(Progress) {}) }()
	<-started
	ok(t, s.Close())
	ok(t, <-served)
	var told *Error
	if err := <-done; !errors.As(err, &told) || told.Hint == "" || !strings.Contains(told.Message, "the daemon has ended") {
		t.Errorf("hydrate: %v", err)
	}
	if _, err := client.Status(t.Context()); err == nil {
		t.Error("no error of a client whose server is gone")
	}
	client.Close()
	if _, err := Dial(t.Context(), socket); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dial the dead: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	_, socket := serve(t, handlers{status: func(context.Context) (Status, error) { return Status{}, nil }})
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket) },
	}}
	for _, c := range []struct {
		method, verb, body string
		status             int
	}{
		{"POST", "status", "{}", 200},
		{"POST", "status", "{} \n", 200},
		{"GET", "status", "", 405},
		{"POST", "nothing", "{}", 404},
		{"POST", "status", "", 400},
		{"POST", "status", "{", 400},
		{"POST", "status", "[]", 400},
		{"POST", "status", "{}{}", 400},
		{"POST", "status", "{} x", 400},
		{"POST", "attach", `{"source":"s","unknown":1}`, 400},
		{"POST", "attach", `{"source":5}`, 400},
		{"POST", "hydrate", "null null", 400},
		{"POST", "hydrate", `{"files":"x"}`, 400},
		{"POST", "detach", `{"path":"` + strings.Repeat("x", maxRequest) + `"}`, 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://lacuna/v1/"+c.verb, strings.NewReader(c.body))
		ok(t, err)
		resp, err := client.Do(req)
		ok(t, err)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s %.40q: status %d, want %d", c.method, c.verb, c.body, resp.StatusCode, c.status)
		}
		ok(t, resp.Body.Close())
	}
}

func TestRepliesThatAreNotUnderstood(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket)
	ok(t, err)
	answer := make(chan string, 1)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status, body, _ := strings.Cut(<-answer, " ")
		code := 200
		if status != "200" {
			code = 500
		}
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client, err := Dial(t.Context(), socket)
	ok(t, err)
	for _, a := range []string{"200 {", "500 {}", "500 nonsense", "500 ", `500 {"message":""}`} {
		answer <- a
		_, err := client.Status(t.Context())
		var e *Error
		if err == nil || errors.As(err, &e) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%q: %v", a, err)
		}
	}
	for _, a := range []string{"200 ", `200 {"progress":{}}`, "200 {", "200 {}"} {
		answer <- a
		if err := client.Hydrate(t.Context(), HydrateRequest{}, func(Progress) {}); err == nil {
			t.Errorf("hydrate, %q: no error", a)
		}
	}
	client.Close()
	ok(t, s.Close())
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestLongSocketPath(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	socket := filepath.Join(long, "lacuna.sock")
	status := handlers{status: func(context.Context) (Status, error) { return Status{Version: "long"}, nil }}
	client := serveAt(t, status, socket)
	if s, err := client.Status(t.Context()); err != nil || s.Version != "long" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := Listen(socket); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second: %v", err)
	}
	for _, absent := range []string{socket + "-absent", filepath.Join(long, "absent", "s"), filepath.Join(socket, "s")} {
		if _, err := Dial(t.Context(), absent); !errors.Is(err, ErrNotRunning) {
			t.Errorf("dial %s: %v", absent[len(long):], err)
		}
	}
	// The longest path that fits, and the one after it.
	dir := t.TempDir()
	for n := maxSocketPath - 1; n <= maxSocketPath+1; n++ {
		if len(dir)+2 > n {
			t.Fatalf("%s is too long for this test", dir)
		}
		edge := filepath.Join(dir, strings.Repeat("x", n-len(dir)-1))
		c := serveAt(t, status, edge)
		if _, err := c.Status(t.Context()); err != nil {
			t.Errorf("%d bytes: %v", len(edge), err)
		}
	}
}

func TestSocketPermissionsAndReplacement(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "sub", "s")
	first, err := Listen(socket)
	ok(t, err)
	info, err := os.Lstat(socket)
	ok(t, err)
	if info.Mode() != fsSocket|0o600 {
		t.Errorf("permissions %v", info.Mode())
	}
	if _, err := Listen(socket); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a live one: %v", err)
	}
	ok(t, first.Close())
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the listener removed its name: %v", err)
	}
	second, err := Listen(socket)
	ok(t, err)
	conn, err := dial(t.Context(), socket)
	ok(t, err)
	ok(t, errors.Join(conn.Close(), second.Close()))
	entries, err := os.ReadDir(filepath.Dir(socket))
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the socket: %v, %v", entries, err)
	}
}

const fsSocket = os.ModeSocket

// A wrong --socket must not cost anybody a file.
func TestOnlySocketsAreReplaced(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	ok(t, os.WriteFile(file, []byte("data"), 0o600))
	link := filepath.Join(dir, "link")
	ok(t, os.Symlink(file, link))
	for _, path := range []string{file, link, dir} {
		if _, err := Listen(path); !errors.Is(err, os.ErrExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := Listen(filepath.Join(file, "s")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

// A live instance whose queue of connections is full does not lose its socket.
func TestBusySocketIsNotReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	raw, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	ok(t, err)
	ok(t, syscall.Bind(raw, &syscall.SockaddrUnix{Name: socket}))
	ok(t, syscall.Listen(raw, 0))
	defer func() { ok(t, syscall.Close(raw)) }()
	conn, err := dial(t.Context(), socket) // takes the only place
	ok(t, err)
	defer func() { ok(t, conn.Close()) }()
	if _, err := Listen(socket); err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	if again, err := os.Lstat(socket); err != nil || again.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket is gone: %v", err)
	}
}
