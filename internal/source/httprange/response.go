package httprange

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/lacunafs/lacuna/internal/source"
)

// Signs between the checks and their callers; neither leaves the package.
var (
	errStatus         = errors.New("status is no success")
	errIfRangeIgnored = fmt.Errorf("%w: the whole file for a range with If-Range", source.ErrNotBytes)
)

// checkResponse tells whether the body of resp begins with the bytes of w in
// the version id, and returns the length that the whole body must have.
// Other versions are told from wrong bytes first: both are errors, but only the former
// says that the file changed.
func checkResponse(resp *http.Response, w want, id source.Identity) (length int64, err error) {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		return w.n, checkPartial(resp, w, id)
	case http.StatusOK:
		return id.Size, checkWhole(resp, w, id)
	case http.StatusPreconditionFailed:
		return 0, fmt.Errorf("%w: status 412", source.ErrChanged)
	case http.StatusRequestedRangeNotSatisfiable:
		if cr, err := contentRangeOf(resp); err == nil && cr.Unsatisfied && cr.Size != id.Size {
			return 0, fmt.Errorf("%w: size is %d, was %d", source.ErrChanged, cr.Size, id.Size)
		}
		return 0, fmt.Errorf("%w: status 416 for a range inside the file", source.ErrNotBytes)
	}
	return 0, errStatus
}

func checkPartial(resp *http.Response, w want, id source.Identity) error {
	cr, err := singleRange(resp)
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
	case !w.ranged:
		return fmt.Errorf("%w: a part of the file where all was asked for", source.ErrNotBytes)
	case cr.Size < 0, cr.First != w.off, cr.Last != w.off+w.n-1:
		return fmt.Errorf("%w: Content-Range %q for [%d,+%d)", source.ErrNotBytes, cr, w.off, w.n)
	case resp.ContentLength >= 0 && resp.ContentLength != w.n:
		return fmt.Errorf("%w: Content-Length %d for %d bytes", source.ErrNotBytes, resp.ContentLength, w.n)
	}
	return nil
}

// checkWhole is for a 200, the whole file: right where the range begins at 0.
func checkWhole(resp *http.Response, w want, id source.Identity) error {
	if err := checkEncoding(resp); err != nil {
		return err
	}
	if err := checkWholeVersion(resp, id); err != nil {
		return err
	}
	switch {
	case w.ifRange && w.off > 0:
		return errIfRangeIgnored
	case w.off > 0:
		return fmt.Errorf("%w: the whole file for [%d,+%d)", source.ErrNotBytes, w.off, w.n)
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

// singleRange returns the Content-Range of a 206 with one part in identity encoding.
func singleRange(resp *http.Response) (contentRange, error) {
	if err := checkEncoding(resp); err != nil {
		return contentRange{}, err
	}
	kind := resp.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(kind); err == nil && media == "multipart/byteranges" ||
		err != nil && strings.Contains(strings.ToLower(kind), "multipart/byteranges") {
		return contentRange{}, fmt.Errorf("%w: multipart/byteranges", source.ErrNotBytes)
	}
	cr, err := contentRangeOf(resp)
	if err == nil && cr.Unsatisfied {
		err = fmt.Errorf("%w: Content-Range %q with status 206", source.ErrNotBytes, cr)
	}
	return cr, err
}

func contentRangeOf(resp *http.Response) (contentRange, error) {
	values := resp.Header.Values("Content-Range")
	if len(values) != 1 {
		return contentRange{}, fmt.Errorf("%w: %d Content-Range headers with status %d", source.ErrNotBytes, len(values), resp.StatusCode)
	}
	cr, err := parseContentRange(values[0])
	if err != nil {
		return cr, fmt.Errorf("%w: %w", source.ErrNotBytes, err)
	}
	return cr, nil
}

func checkEncoding(resp *http.Response) error {
	for _, e := range resp.Header.Values("Content-Encoding") {
		if e != "" && !strings.EqualFold(e, "identity") {
			return fmt.Errorf("%w: Content-Encoding %q", source.ErrNotBytes, e)
		}
	}
	return nil
}

// lastModified marks a validator that is no ETag (see source.Identity).
const lastModified = "last-modified: "

// validator returns what names the version that h belongs to.
func validator(h http.Header) string {
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

// isStrong tells whether v is a strong ETag in its exact form (RFC 9110 section
// 8.8.3): what If-Range may carry. A date may be sent there too when it is known to be
// strong, which takes a clock comparison that a response's own check makes needless.
func isStrong(v string) bool {
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
