package ranged

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/lacunafs/lacuna/internal/source"
)

// Signs between the checks and the sources that call them; no source returns them.
var (
	// ErrStatus: the status is no success. Answer.Refuse makes a StatusError of it.
	ErrStatus = errors.New("status is no success")
	// ErrIfRangeIgnored: the range is worth asking for again without If-Range.
	ErrIfRangeIgnored = fmt.Errorf("%w: the whole file for a range with If-Range", source.ErrNotBytes)
)

// Want is what one request is for.
type Want struct {
	Off, N  int64
	Ranged  bool // ask with Range; otherwise for the whole file, Off is 0
	IfRange bool // ask with If-Range
}

// Header is what asks for w of the version id. The range is always of the form
// first-last, which is the one that every server with ranges understands.
func (w Want) Header(id source.Identity) http.Header {
	h := http.Header{}
	if w.Ranged {
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", w.Off, w.Off+w.N-1))
	}
	if w.IfRange {
		h.Set("If-Range", id.Validator)
	}
	return h
}

// CheckResponse tells whether the body of resp begins with the bytes of w in
// the version id, and returns the length that the whole body must have.
// Other versions are told from wrong bytes first: both are errors, but only the former
// says that the file changed.
func CheckResponse(resp *http.Response, w Want, id source.Identity) (length int64, err error) {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		return w.N, checkPartial(resp, w, id)
	case http.StatusOK:
		return id.Size, checkWhole(resp, w, id)
	case http.StatusPreconditionFailed:
		return 0, fmt.Errorf("%w: status 412", source.ErrChanged)
	case http.StatusRequestedRangeNotSatisfiable:
		if cr, err := ContentRangeOf(resp); err == nil && cr.Unsatisfied && cr.Size != id.Size {
			return 0, fmt.Errorf("%w: size is %d, was %d", source.ErrChanged, cr.Size, id.Size)
		}
		return 0, fmt.Errorf("%w: status 416 for a range inside the file", source.ErrNotBytes)
	}
	return 0, ErrStatus
}

func checkPartial(resp *http.Response, w Want, id source.Identity) error {
	cr, err := SingleRange(resp)
	if err != nil {
		return err
	}
	if cr.Size >= 0 && cr.Size != id.Size {
		return fmt.Errorf("%w: size is %d, was %d", source.ErrChanged, cr.Size, id.Size)
	}
	if err := checkValidator(resp.Header, id); err != nil {
		return err
	}
	switch {
	case !w.Ranged:
		return fmt.Errorf("%w: a part of the file where all was asked for", source.ErrNotBytes)
	case cr.Size < 0, cr.First != w.Off, cr.Last != w.Off+w.N-1:
		return fmt.Errorf("%w: Content-Range %q for [%d,+%d)", source.ErrNotBytes, cr, w.Off, w.N)
	case resp.ContentLength >= 0 && resp.ContentLength != w.N:
		return fmt.Errorf("%w: Content-Length %d for %d bytes", source.ErrNotBytes, resp.ContentLength, w.N)
	}
	return nil
}

// checkWhole is for a 200, the whole file: right where the range begins at 0.
func checkWhole(resp *http.Response, w Want, id source.Identity) error {
	if err := CheckEncoding(resp); err != nil {
		return err
	}
	if err := checkWholeVersion(resp, id); err != nil {
		return err
	}
	switch {
	case w.IfRange && w.Off > 0:
		return ErrIfRangeIgnored
	case w.Off > 0:
		return fmt.Errorf("%w: the whole file for [%d,+%d)", source.ErrNotBytes, w.Off, w.N)
	}
	return nil
}

// checkWholeVersion tells whether a 200 is of the version id. What is not may be
// a page that stands in for the file for a while (maintenance, a login, an error
// with the wrong status), so only a validator of the known kind that is another
// one says that the file changed, and on a page of HTML not even that one.
func checkWholeVersion(resp *http.Response, id source.Identity) error {
	h, otherSize := resp.Header, resp.ContentLength >= 0 && resp.ContentLength != id.Size
	versioned := id.Validator != "" && h.Get("ETag") != ""
	if strings.HasPrefix(id.Validator, lastModified) {
		versioned = h.Get("Last-Modified") != ""
	}
	switch {
	case otherSize && (isHTML(h) || !versioned):
		return &standInError{fmt.Sprintf("status 200 with %d bytes, the file has %d", resp.ContentLength, id.Size)}
	case versioned:
		return checkValidator(h, id)
	case id.Validator != "":
		return &standInError{"status 200 without the file's validator"}
	case resp.ContentLength < 0:
		return &standInError{"status 200 without validator and length"}
	}
	return nil
}

func isHTML(h http.Header) bool {
	media, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (media == "text/html" || media == "application/xhtml+xml")
}

// SingleRange returns the Content-Range of a 206 with one part in identity encoding.
func SingleRange(resp *http.Response) (ContentRange, error) {
	if err := CheckEncoding(resp); err != nil {
		return ContentRange{}, err
	}
	kind := resp.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(kind); err == nil && media == "multipart/byteranges" ||
		err != nil && strings.Contains(strings.ToLower(kind), "multipart/byteranges") {
		return ContentRange{}, fmt.Errorf("%w: multipart/byteranges", source.ErrNotBytes)
	}
	cr, err := ContentRangeOf(resp)
	if err == nil && cr.Unsatisfied {
		err = fmt.Errorf("%w: Content-Range %q with status 206", source.ErrNotBytes, cr)
	}
	return cr, err
}

// ContentRangeOf returns the one Content-Range that resp must have.
func ContentRangeOf(resp *http.Response) (ContentRange, error) {
	values := resp.Header.Values("Content-Range")
	if len(values) != 1 {
		return ContentRange{}, fmt.Errorf("%w: %d Content-Range headers with status %d", source.ErrNotBytes, len(values), resp.StatusCode)
	}
	cr, err := parseContentRange(values[0])
	if err != nil {
		return cr, fmt.Errorf("%w: %w", source.ErrNotBytes, err)
	}
	return cr, nil
}

// CheckEncoding refuses a body that is not the bytes themselves.
func CheckEncoding(resp *http.Response) error {
	for _, e := range resp.Header.Values("Content-Encoding") {
		if e != "" && !strings.EqualFold(e, "identity") {
			return fmt.Errorf("%w: Content-Encoding %q", source.ErrNotBytes, e)
		}
	}
	return nil
}

// lastModified marks a validator that is no ETag (see source.Identity).
const lastModified = "last-modified: "

// Validator returns what names the version that h belongs to.
func Validator(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" {
		return tag
	}
	if date := h.Get("Last-Modified"); date != "" {
		return lastModified + date
	}
	return ""
}

// checkValidator compares h with the version that the blob is bound to. A
// strong ETag must come back as it is; a weak one is compared weakly (RFC 9110
// section 8.8.3.2), a date as text. A 206 must repeat what a 200 would have
// had of them (section 15.3.7), so one that is missing is a change too.
func checkValidator(h http.Header, id source.Identity) error {
	var got string
	switch known := id.Validator; {
	case known == "":
		return nil
	case strings.HasPrefix(known, lastModified):
		got = lastModified + h.Get("Last-Modified")
		if got == known {
			return nil
		}
	default:
		got = h.Get("ETag")
		opaque, weak := strings.CutPrefix(known, "W/")
		if got == known || weak && got == opaque {
			return nil
		}
	}
	return fmt.Errorf("%w: validator is %q, was %q", source.ErrChanged, got, id.Validator)
}

// IsStrong tells whether v is a strong ETag in its exact form (RFC 9110 section
// 8.8.3): what If-Range may carry. A date may be sent there too when it is known to be
// strong, which takes a clock comparison that a response's own check makes needless.
func IsStrong(v string) bool {
	if len(v) < 2 || v[0] != '"' || v[len(v)-1] != '"' {
		return false
	}
	for _, c := range []byte(v[1 : len(v)-1]) {
		if c != 0x21 && (c < 0x23 || c == 0x7f) {
			return false
		}
	}
	return true
}
