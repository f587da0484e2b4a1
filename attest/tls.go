package attest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// ServerTLS is what a listener's TLS is made of.
type ServerTLS struct {
	SVID      bool   // serve with our own SVID
	Cert, Key string // or with these files (PEM), read again when they change

	// ClientCerts is "off", "optional" or "required". With optional, a
	// certificate that proves nobody is refused when something is asked for
	// that needs a caller, with an answer that says what is wrong with it.
	// With required, it is refused in the handshake, and gets no answer at
	// all, not even to what is open to everybody.
	ClientCerts string
}

var clientAuth = map[string]tls.ClientAuthType{
	"off":      tls.NoClientCert,
	"optional": tls.RequestClientCert,
	"required": tls.RequireAnyClientCert,
}

// ServerTLS gives the TLS configuration of a listener: TLS 1.3, HTTP/2 and
// HTTP/1.1, no session tickets. Authenticate verifies what clients present;
// the handshake does only with ClientCerts "required".
//
// Tickets are off because Go does not verify certificates again when a session
// resumes, and because a ticket would be one more thing that proves somebody.
func (v *Verifier) ServerTLS(cfg ServerTLS) (*tls.Config, error) {
	auth, ok := clientAuth[cfg.ClientCerts]
	if !ok {
		return nil, fmt.Errorf("client_certs is %q: choose off, optional or required", cfg.ClientCerts)
	}
	get, err := v.source.certificate(cfg)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
		GetCertificate:         get,
		ClientAuth:             auth,
	}
	if auth == tls.RequireAnyClientCert {
		config.VerifyConnection = func(c tls.ConnectionState) error {
			_, err := v.X509(c.PeerCertificates, time.Now())
			return err
		}
	}
	return config, nil
}

// certificate says where a server's certificate comes from.
func (s *Source) certificate(cfg ServerTLS) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	switch {
	case cfg.SVID && (cfg.Cert != "" || cfg.Key != ""):
		return nil, errors.New("serve with the own SVID or with files, not both")
	case cfg.SVID && s.cfg.WorkloadAPI == "":
		return nil, ErrNoSVID
	case cfg.SVID:
		return s.GetCertificate, nil // until there is one, handshakes fail
	}
	c := &certFile{certPath: cfg.Cert, keyPath: cfg.Key}
	if cfg.Cert == "" || cfg.Key == "" {
		return nil, errors.New("serving TLS: give a certificate and its key, or serve with the own SVID")
	}
	if err := c.read(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certs = append(s.certs, c)
	return c.get, nil
}

// retireBefore is how long before the end of a client's certificate we ask the
// client to connect again. It is longer than a connection may be idle.
const retireBefore = 5 * time.Minute

// Retire asks clients whose certificate is about to end to connect again, with
// the one that they have fetched by then: "Connection: close", which over
// HTTP/2 becomes a GOAWAY. Else a connection that lives longer than its
// certificate would end with refusals although its client did nothing wrong.
func Retire(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && ending(r.TLS.PeerCertificates[0], time.Now()) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// ending says whether the last third of a certificate's life, or its last
// minutes, have begun. Agents renew halfway (SPIRE's do).
func ending(leaf *x509.Certificate, now time.Time) bool {
	margin := min(retireBefore, leaf.NotAfter.Sub(leaf.NotBefore)/3)
	return now.After(leaf.NotAfter.Add(-margin))
}
