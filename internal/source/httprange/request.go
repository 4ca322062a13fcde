package httprange

import (
	"context"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"

	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// send sends one GET to u, without following anything.
func (b *blob) send(ctx context.Context, u *url.URL, h http.Header) (*ranged.Answer, error) {
	s := ranged.Sender{Transport: b.transport, Stall: b.opts.Stall, Life: b.life}
	return s.Send(ctx, ranged.NewRequest(u, b.header(u, h)))
}

func (b *blob) header(u *url.URL, h http.Header) http.Header {
	header := http.Header{}
	if u.Scheme == b.url.Scheme && u.Host == b.url.Host {
		if b.auth != "" {
			header.Set("Authorization", b.auth)
		}
		for name, values := range b.opts.Header {
			header[http.CanonicalHeaderKey(name)] = values
		}
		header.Del("Range")
		header.Del("If-Range")
	} else if auth := basicAuth(u); auth != "" {
		header.Set("Authorization", auth)
	}
	maps.Copy(header, h)
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", b.opts.UserAgent)
	return header
}

// plain is u without user name, password and fragment.
func plain(u *url.URL) *url.URL {
	p := *u
	p.User, p.Fragment, p.RawFragment = nil, "", ""
	return &p
}

func basicAuth(u *url.URL) string {
	if u.User == nil {
		return ""
	}
	password, _ := u.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
}
