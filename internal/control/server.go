package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Handler does what the commands ask for. Its methods may be called
// concurrently. An error that is not an *Error is shown as it is, with ExitError.
type Handler interface {
	Files
	Mounts
	Life
}

// Life is the part about the instance itself.
type Life interface {
	// Stop has the instance take down what nobody uses and end, and tells whom it
	// waits for first. It returns before that: a second call tells who is left.
	Stop(context.Context) (StopReply, error)
}

// Mounts is the part about images.
type Mounts interface {
	Mount(context.Context, MountRequest) (MountReply, error)
	Umount(context.Context, UmountRequest) error
}

// Files is the part about single files and directories of them.
type Files interface {
	Attach(context.Context, AttachRequest) (AttachReply, error)
	Detach(context.Context, DetachRequest) error
	Bind(context.Context, BindRequest) (BindReply, error)
	Hydrate(context.Context, HydrateRequest, func(Progress)) error
	Status(context.Context) (Status, error)
}

// maxRequest bounds a request's body, in bytes.
const maxRequest = 1 << 20

// hydrateLine is one line of a hydrate's reply.
type hydrateLine struct {
	Progress *Progress `json:"progress,omitempty"`
	Error    *Error    `json:"error,omitempty"`
	Done     bool      `json:"done,omitempty"`
}

// Server answers on a control socket.
type Server struct {
	http http.Server
}

// NewServer makes a server of h.
func NewServer(h Handler) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attach", handle(h.Attach))
	mux.HandleFunc("POST /v1/detach", handle(func(ctx context.Context, q DetachRequest) (struct{}, error) {
		return struct{}{}, h.Detach(ctx, q)
	}))
	mux.HandleFunc("POST /v1/bind", handle(h.Bind))
	mux.HandleFunc("POST /v1/mount", handle(h.Mount))
	mux.HandleFunc("POST /v1/umount", handle(func(ctx context.Context, q UmountRequest) (struct{}, error) {
		return struct{}{}, h.Umount(ctx, q)
	}))
	mux.HandleFunc("POST /v1/status", handle(func(ctx context.Context, _ struct{}) (Status, error) {
		return h.Status(ctx)
	}))
	mux.HandleFunc("POST /v1/stop", handle(func(ctx context.Context, _ struct{}) (StopReply, error) {
		return h.Stop(ctx)
	}))
	mux.HandleFunc("POST /v1/hydrate", func(w http.ResponseWriter, r *http.Request) { hydrate(h, w, r) })
	return &Server{http: http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}}
}

// Serve answers on l until Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the control socket: %w", err)
	}
	return nil
}

// Close ends Serve and the calls that run; their contexts end.
func (s *Server) Close() error { return s.http.Close() }

// asError is err as the client is told it.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Message: err.Error(), Exit: ExitError}
}

func handle[Q, R any](call func(context.Context, Q) (R, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := decode(r.Body, &q); err != nil {
			reply(w, http.StatusBadRequest, &Error{Message: err.Error(), Exit: ExitUsage})
			return
		}
		answer, err := call(r.Context(), q)
		if err != nil {
			reply(w, http.StatusInternalServerError, asError(err))
			return
		}
		reply(w, http.StatusOK, answer)
	}
}

func decode(body io.Reader, into any) error {
	dec := json.NewDecoder(io.LimitReader(body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read the request: something follows it")
	}
	return nil
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client is gone if this fails: nobody is left to be told.
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return
	}
}

func hydrate(h Handler, w http.ResponseWriter, r *http.Request) {
	var q HydrateRequest
	if err := decode(r.Body, &q); err != nil {
		reply(w, http.StatusBadRequest, &Error{Message: err.Error(), Exit: ExitUsage})
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// A client that does not read must not hold up the work: what it has not
	// read yet is replaced by what is newer.
	latest := make(chan Progress, 1)
	result := make(chan error, 1)
	go func() {
		result <- h.Hydrate(ctx, q, func(p Progress) {
			select {
			case <-latest:
			default:
			}
			select {
			case latest <- p:
			default: // another call was quicker
			}
		})
	}()
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	send := func(line hydrateLine) {
		if errors.Join(enc.Encode(line), flush.Flush()) != nil {
			cancel() // the client is gone
		}
	}
	for {
		select {
		case p := <-latest:
			send(hydrateLine{Progress: &p})
		case err := <-result:
			select {
			case p := <-latest: // how far it came
				send(hydrateLine{Progress: &p})
			default:
			}
			if err != nil {
				send(hydrateLine{Error: asError(err)})
			} else {
				send(hydrateLine{Done: true})
			}
			return
		}
	}
}
