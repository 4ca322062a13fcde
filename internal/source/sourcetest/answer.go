package sourcetest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Answer is what the server is about to send. A Fault changes it.
type Answer struct {
	Status  int
	Header  http.Header
	Size    int64 // of the whole file
	Off, N  int64 // the bytes of the body
	Content io.ReaderAt
	// Length is the Content-Length; empty: N. "none": no such header, the body is chunked.
	Length string
	// Cut ends the body after so many bytes in the way that Then says; -1: not.
	Cut  int64
	Then End
	// Extra is sent behind the body.
	Extra []byte
}

// End is how a body that is cut ends.
type End int

// The ways to end.
const (
	Closed  End = iota // the connection is closed in order
	Reset              // the connection is reset
	Stalled            // nothing more comes, the connection stays
)

// Fault makes an answer wrong.
type Fault func(*Answer)

// narrow makes a the answer to a Range header of one range.
func (a *Answer) narrow(spec string) {
	first, last, ok := strings.Cut(strings.TrimPrefix(spec, "bytes="), "-")
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	switch {
	case !ok || err1 != nil && err2 != nil:
		return // what is no range is not answered as one
	case first == "": // the last bytes
		from, to = max(a.Size-to, 0), a.Size-1
	case last == "":
		to = a.Size - 1
	}
	if from >= a.Size {
		a.Status, a.N = http.StatusRequestedRangeNotSatisfiable, 0
		a.Header.Set("Content-Range", fmt.Sprintf("bytes */%d", a.Size))
		return
	}
	to = min(to, a.Size-1)
	a.Status, a.Off, a.N = http.StatusPartialContent, from, to-from+1
	a.setRange(from, to, a.Size)
}

func (a *Answer) setRange(first, last, size int64) {
	a.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
}

// send sends a. Write errors end it: the client has gone.
func (a *Answer) send(s *Server, w http.ResponseWriter, r *http.Request, rate int64) {
	if a.Status == 0 {
		a.cut(s, w, r)
		return
	}
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	switch a.Length {
	case "":
		w.Header().Set("Content-Length", strconv.FormatInt(a.N+int64(len(a.Extra)), 10))
	case "none":
	default:
		w.Header().Set("Content-Length", a.Length)
	}
	w.WriteHeader(a.Status)
	if a.Length == "none" || a.Cut >= 0 {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
	}
	n := a.N
	if a.Cut >= 0 {
		n = min(n, a.Cut)
	}
	if !a.copy(s, w, r, n, rate) {
		return
	}
	if a.Cut >= 0 {
		a.cut(s, w, r)
		return
	}
	if _, err := w.Write(a.Extra); err != nil {
		return
	}
}

// copy sends n bytes of the body and tells whether they all went out.
func (a *Answer) copy(s *Server, w http.ResponseWriter, r *http.Request, n, rate int64) bool {
	buf := make([]byte, 256<<10)
	if rate > 0 {
		buf = buf[:min(max(rate/100, 1), int64(len(buf)))]
	}
	began := time.Now()
	for sent := int64(0); sent < n; {
		p := buf[:min(int64(len(buf)), n-sent)]
		if _, err := a.Content.ReadAt(p, a.Off+sent); err != nil && !errors.Is(err, io.EOF) {
			return false
		}
		if _, err := w.Write(p); err != nil {
			return false
		}
		sent += int64(len(p))
		if rate > 0 {
			due := began.Add(time.Duration(float64(sent) / float64(rate) * float64(time.Second)))
			if http.NewResponseController(w).Flush() != nil {
				return false
			}
			s.wait(r.Context(), time.Until(due))
		}
	}
	return true
}

func (a *Answer) cut(s *Server, w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	if a.Status != 0 && control.Flush() != nil {
		return
	}
	switch a.Then {
	case Stalled:
		select {
		case <-r.Context().Done():
		case <-s.done:
		}
	case Reset:
		conn, _, err := control.Hijack()
		if err != nil {
			break // HTTP/2: the panic resets the stream
		}
		if tcp, ok := conn.(*net.TCPConn); ok && tcp.SetLinger(0) != nil {
			break
		}
		if conn.Close() != nil {
			break
		}
		return
	}
	panic(http.ErrAbortHandler)
}
