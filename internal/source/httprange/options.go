package httprange

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Options say how a server is spoken to. The zero value is good.
type Options struct {
	// Header is added to each request to the URL's own scheme, host and
	// port, and not to the targets of redirects elsewhere. An Authorization in it wins
	// over user name and password in the URL.
	Header http.Header
	// UserAgent names the program; empty: "lacuna".
	UserAgent string
	// Stall is how long a body may deliver nothing before it fails; 0: 30 s.
	Stall time.Duration
	// Sequential is for Reopen: the blob was sequential when it was opened.
	Sequential bool

	// Transport holds connections that blobs share, made by NewTransport,
	// whose caller closes its idle connections in the end. nil: the blob
	// makes its own from the fields below, and closes them itself.
	Transport *http.Transport

	// ConnsPerHost bounds the connections to one host; 0: 16. HTTP/2 needs one.
	ConnsPerHost int
	// Connect bounds name resolution and connecting; 0: 10 s.
	Connect time.Duration
	// TLSHandshake bounds the handshake; 0: 10 s.
	TLSHandshake time.Duration
	// ResponseHeader bounds the wait from the request to its response's header; 0: 30 s.
	ResponseHeader time.Duration
	// TLS is the client's configuration, such as more root certificates; nil: Go's defaults.
	TLS *tls.Config
	// Proxy chooses a proxy for a request, as http.Transport has it; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
}

func (o Options) withDefaults() Options {
	if o.UserAgent == "" {
		o.UserAgent = "lacuna"
	}
	if o.ConnsPerHost <= 0 {
		o.ConnsPerHost = 16
	}
	for d, standard := range map[*time.Duration]time.Duration{
		&o.Stall: 30 * time.Second, &o.Connect: 10 * time.Second,
		&o.TLSHandshake: 10 * time.Second, &o.ResponseHeader: 30 * time.Second,
	} {
		if *d <= 0 {
			*d = standard
		}
	}
	return o
}

// NewTransport makes connections for several blobs to share.
func NewTransport(opts Options) *http.Transport {
	opts = opts.withDefaults()
	dialer := &net.Dialer{Timeout: opts.Connect}
	return &http.Transport{
		Proxy:                  opts.Proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        opts.TLS,
		TLSHandshakeTimeout:    opts.TLSHandshake,
		ResponseHeaderTimeout:  opts.ResponseHeader,
		ForceAttemptHTTP2:      true, // own DialContext and TLS settings switch it off otherwise
		DisableCompression:     true, // ranges are ranges of the identity encoding
		MaxConnsPerHost:        opts.ConnsPerHost,
		MaxIdleConnsPerHost:    opts.ConnsPerHost,
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		ReadBufferSize:         64 << 10,
		HTTP2: &http.HTTP2Config{
			// A connection that died without a word is noticed by pings.
			SendPingTimeout: 15 * time.Second,
			PingTimeout:     15 * time.Second,
		},
	}
}
