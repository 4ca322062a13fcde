package httprange

import (
	"context"
	"fmt"
	"net/http"

	"github.com/lacunafs/lacuna/internal/source"
)

// learn finds the blob's identity with a GET of the first byte. HEAD would be
// the obvious way, but signed URLs are often signed for GET alone, and servers
// answer HEAD without a length.
func (b *blob) learn(ctx context.Context) error {
	w := want{n: 1, ranged: true}
	resp, err := b.get(ctx, w.header(source.Identity{}))
	if err != nil {
		return err
	}
	id, sequential, err := learnFrom(resp.Response)
	if err != nil {
		return resp.refuse(err)
	}
	b.id, b.sequential = id, sequential
	return resp.finish()
}

func learnFrom(resp *http.Response) (id source.Identity, sequential bool, err error) {
	id.Validator = validator(resp.Header)
	switch resp.StatusCode {
	case http.StatusPartialContent:
		cr, err := singleRange(resp)
		if err != nil {
			return id, false, err
		}
		if cr.Size < 0 {
			return id, false, fmt.Errorf("%w: Content-Range %q", source.ErrSizeUnknown, cr)
		}
		id.Size = cr.Size
		_, err = checkResponse(resp, want{n: 1, ranged: true}, id)
		return id, false, err
	case http.StatusOK:
		if err := checkEncoding(resp); err != nil {
			return id, false, err
		}
		if resp.ContentLength < 0 {
			return id, false, fmt.Errorf("%w: the server sends neither a range nor a Content-Length", source.ErrSizeUnknown)
		}
		id.Size = resp.ContentLength
		return id, id.Size > 0, nil
	case http.StatusRequestedRangeNotSatisfiable:
		// No first byte: RFC 9110 section 14.4 has "bytes */0" for an empty file.
		if cr, err := contentRangeOf(resp); err == nil && cr.Unsatisfied && cr.Size == 0 {
			return id, false, nil
		}
		return id, false, fmt.Errorf("%w: status 416 for the first byte", source.ErrNotBytes)
	}
	return id, false, errStatus
}
