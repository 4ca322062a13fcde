package httprange

import (
	"context"
	"fmt"
	"net/http"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// learn finds the blob's identity with a GET of the first byte. HEAD would be
// the obvious way, but signed URLs are often signed for GET alone, and servers
// answer HEAD without a length.
func (b *blob) learn(ctx context.Context) error {
	w := ranged.Want{N: 1, Ranged: true}
	resp, err := b.redirects.Get(ctx, w.Header(source.Identity{}))
	if err != nil {
		return err
	}
	id, sequential, err := learnFrom(resp.Response)
	if err != nil {
		return resp.Refuse(err)
	}
	b.id, b.sequential = id, sequential
	return resp.Finish()
}

func learnFrom(resp *http.Response) (id source.Identity, sequential bool, err error) {
	id.Validator = ranged.Validator(resp.Header)
	switch resp.StatusCode {
	case http.StatusPartialContent:
		cr, err := ranged.SingleRange(resp)
		if err != nil {
			return id, false, err
		}
		if cr.Size < 0 {
			return id, false, fmt.Errorf("%w: Content-Range %q", source.ErrSizeUnknown, cr)
		}
		id.Size = cr.Size
		_, err = ranged.CheckResponse(resp, ranged.Want{N: 1, Ranged: true}, id)
		return id, false, err
	case http.StatusOK:
		if err := ranged.CheckEncoding(resp); err != nil {
			return id, false, err
		}
		if resp.ContentLength < 0 {
			return id, false, fmt.Errorf("%w: the server sends neither a range nor a Content-Length", source.ErrSizeUnknown)
		}
		id.Size = resp.ContentLength
		return id, id.Size > 0, nil
	case http.StatusRequestedRangeNotSatisfiable:
		// No first byte: RFC 9110 section 14.4 has "bytes */0" for an empty file.
		if cr, err := ranged.ContentRangeOf(resp); err == nil && cr.Unsatisfied && cr.Size == 0 {
			return id, false, nil
		}
		return id, false, fmt.Errorf("%w: status 416 for the first byte", source.ErrNotBytes)
	}
	return id, false, ranged.ErrStatus
}
