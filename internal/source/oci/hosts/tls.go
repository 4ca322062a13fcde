package hosts

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// Plain tells whether h says nothing about how connections are made, so that
// they can be those of every other host.
func (h Host) Plain() bool {
	return len(h.CA) == 0 && len(h.Client) == 0 && !h.SkipVerify && h.Connect == 0 && h.Proxy == nil
}

// TLS is standard, which may be nil, with what h says added.
func (h Host) TLS(standard *tls.Config) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if standard != nil {
		c = standard.Clone()
	}
	c.InsecureSkipVerify = c.InsecureSkipVerify || h.SkipVerify
	if len(h.CA) > 0 {
		pool, err := roots(c.RootCAs)
		if err != nil {
			return nil, fmt.Errorf("read the system's certificates: %w", err)
		}
		for _, file := range h.CA {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read certificate: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("read certificate %s: no PEM certificate in it", file)
			}
		}
		c.RootCAs = pool
	}
	for _, pair := range h.Client {
		key := pair[1]
		if key == "" {
			key = pair[0]
		}
		cert, err := tls.LoadX509KeyPair(pair[0], key)
		if err != nil {
			return nil, fmt.Errorf("read client certificate %s: %w", pair[0], err)
		}
		c.Certificates = append(c.Certificates, cert)
	}
	return c, nil
}

func roots(known *x509.CertPool) (*x509.CertPool, error) {
	if known != nil {
		return known.Clone(), nil
	}
	return x509.SystemCertPool()
}
