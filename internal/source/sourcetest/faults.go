package sourcetest

import (
	"net/http"
	"strconv"
	"strings"
)

// Whole answers a range with status 200 and the whole file, as a server without ranges does.
func Whole(a *Answer) {
	a.Status, a.Off, a.N = http.StatusOK, 0, a.Size
	a.Header.Del("Content-Range")
	a.Header.Del("Accept-Ranges")
}

// Shifted moves the bytes and the Content-Range of a 206 by one.
func Shifted(a *Answer) {
	if a.Status == http.StatusPartialContent && a.Off > 0 {
		a.Off--
		a.setRange(a.Off, a.Off+a.N-1, a.Size)
	}
}

// EndsEarly answers a 206 with one byte less than asked for, and says so.
func EndsEarly(a *Answer) {
	if a.Status == http.StatusPartialContent && a.N > 1 {
		a.N--
		a.setRange(a.Off, a.Off+a.N-1, a.Size)
	}
}

// ContentRange replaces the Content-Range header; empty: a 206 without one.
func ContentRange(value string) Fault {
	return func(a *Answer) {
		a.Header.Del("Content-Range")
		if value != "" {
			a.Header.Set("Content-Range", value)
		}
	}
}

// WrongTotal adds one to the total of a Content-Range.
func WrongTotal(a *Answer) { a.setRange(a.Off, a.Off+a.N-1, a.Size+1) }

// TotalUnknown gives a Content-Range with "*" for the total.
func TotalUnknown(a *Answer) {
	value := a.Header.Get("Content-Range")
	a.Header.Set("Content-Range", value[:strings.LastIndexByte(value, '/')]+"/*")
}

// Cut ends the body after n bytes.
func Cut(n int64, then End) Fault { return func(a *Answer) { a.Cut, a.Then = n, then } }

// ShortFramed sends one byte less with a Content-Length that fits, under a
// Content-Range that does not.
func ShortFramed(a *Answer) { a.N-- }

// ShortChunked sends one byte less in a chunked body that ends in order.
func ShortChunked(a *Answer) {
	a.N--
	a.Length = "none"
}

// LongFramed sends more than asked for with a Content-Length that fits.
func LongFramed(a *Answer) { a.Extra = []byte("extra") }

// LongChunked sends more than asked for in a chunked body.
func LongChunked(a *Answer) { a.Extra, a.Length = []byte("extra"), "none" }

// Chunked sends the right bytes without Content-Length.
func Chunked(a *Answer) { a.Length = "none" }

// NoLength is a server without range requests and without Content-Length.
func NoLength(a *Answer) {
	Whole(a)
	a.Length = "none"
}

// Status answers with an empty body and, where it is not empty, a Retry-After header.
func Status(code int, retryAfter string) Fault {
	return func(a *Answer) {
		a.Status, a.Header, a.N = code, http.Header{}, 0
		if retryAfter != "" {
			a.Header.Set("Retry-After", retryAfter)
		}
	}
}

// Burst is n times Status.
func Burst(n, code int, retryAfter string) []Fault {
	var all []Fault
	for range n {
		all = append(all, Status(code, retryAfter))
	}
	return all
}

// Header replaces a header; empty: removes it.
func Header(name, value string) Fault {
	return func(a *Answer) {
		a.Header.Del(name)
		if value != "" {
			a.Header.Set(name, value)
		}
	}
}

// Unsatisfiable answers 416 for a file of the given size.
func Unsatisfiable(size int64) Fault {
	return func(a *Answer) {
		Status(http.StatusRequestedRangeNotSatisfiable, "")(a)
		a.Header.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
	}
}

// Gzip says that the body is encoded.
func Gzip(a *Answer) { a.Header.Set("Content-Encoding", "gzip") }

// Multipart says that the body is one of several ranges.
func Multipart(a *Answer) {
	a.Header.Set("Content-Type", "multipart/byteranges; boundary=THIS_STRING_SEPARATES")
	a.Header.Del("Content-Range")
}

// Silent takes the request and never answers.
func Silent(a *Answer) { a.Status, a.Cut, a.Then = 0, 0, Stalled }
