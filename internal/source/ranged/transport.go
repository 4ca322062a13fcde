package ranged

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Connections say how connections are made. The zero value is good.
type Connections struct {
	// PerHost bounds the connections to one host; 0: 16. HTTP/2 needs one.
	PerHost int
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

// DefaultStall is how long a body may deliver nothing where nobody says otherwise.
const DefaultStall = 30 * time.Second

// NewTransport makes connections that are kept for the next request. Its caller
// closes the idle ones in the end.
func NewTransport(c Connections) *http.Transport {
	if c.PerHost <= 0 {
		c.PerHost = 16
	}
	for d, standard := range map[*time.Duration]time.Duration{
		&c.Connect: 10 * time.Second, &c.TLSHandshake: 10 * time.Second, &c.ResponseHeader: 30 * time.Second,
	} {
		if *d <= 0 {
			*d = standard
		}
	}
	dialer := &net.Dialer{Timeout: c.Connect}
	return &http.Transport{
		Proxy:                  c.Proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        c.TLS,
		TLSHandshakeTimeout:    c.TLSHandshake,
		ResponseHeaderTimeout:  c.ResponseHeader,
		ForceAttemptHTTP2:      true, // own DialContext and TLS settings switch it off otherwise
		DisableCompression:     true, // ranges are ranges of the identity encoding
		MaxConnsPerHost:        c.PerHost,
		MaxIdleConnsPerHost:    c.PerHost,
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
