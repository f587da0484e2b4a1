package attest

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
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
func CloseExpiringConnections(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && expiresSoon(r.TLS.PeerCertificates[0], time.Now()) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// ending says whether the last third of a certificate's life, or its last
// minutes, have begun. Agents renew halfway (SPIRE's do).
func expiresSoon(leaf *x509.Certificate, now time.Time) bool {
	margin := min(retireBefore, leaf.NotAfter.Sub(leaf.NotBefore)/3)
	return now.After(leaf.NotAfter.Add(-margin))
}

// ClientTLS is what the TLS of a caller of the broker is made of.
type ClientTLS struct {
	// BrokerID is whom the broker must prove to be,
	// "spiffe://acme.test/broker". Empty: any workload of TrustDomain will do.
	BrokerID    string
	TrustDomain string // empty: our own

	// Web is for a broker that serves with a web server's certificate: that
	// and the host's name are verified by Roots (nil: the system's), and no
	// SPIFFE ID is asked for.
	WebPKI bool
	Roots  *x509.CertPool

	// Cert and Key are files (PEM), read at each handshake. Empty: our own
	// SVID of the Workload API.
	Cert, Key string

	// NoCert is for callers that prove themselves by a token: with a
	// certificate beside it they would be refused.
	NoCert bool
}

// ClientTLS gives the TLS configuration of a caller of the broker.
func (s *Source) ClientTLS(cfg ClientTLS) (*tls.Config, error) {
	config := &tls.Config{RootCAs: cfg.Roots}
	if !cfg.WebPKI {
		authorize, err := s.authorizer(cfg)
		if err != nil {
			return nil, err
		}
		config = tlsconfig.TLSClientConfig(s, authorize)
	}
	config.MinVersion = tls.VersionTLS13
	if cfg.NoCert {
		return config, nil
	}
	show, err := s.clientCert(cfg)
	if err != nil {
		return nil, err
	}
	config.GetClientCertificate = show
	return config, nil
}

func (s *Source) authorizer(cfg ClientTLS) (tlsconfig.Authorizer, error) {
	if cfg.BrokerID != "" {
		id, err := workloadID(cfg.BrokerID)
		if err != nil {
			return nil, fmt.Errorf("the broker's SPIFFE ID %q %w", cfg.BrokerID, err)
		}
		return func(got spiffeid.ID, _ [][]*x509.Certificate) error {
			if got != id {
				return fmt.Errorf("the broker there is %s, and not %s", got, id)
			}
			return nil
		}, nil
	}
	name := cmp.Or(cfg.TrustDomain, s.ownDomain().Name())
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, fmt.Errorf("the broker's trust domain %q is not one, such as acme.test", name)
	}
	return tlsconfig.AuthorizeMemberOf(td), nil
}

// clientCert says what a client shows; it is asked at each handshake, so that
// a rotated SVID is used by the next connection.
func (s *Source) clientCert(cfg ClientTLS) (func(*tls.CertificateRequestInfo) (*tls.Certificate, error), error) {
	read := func() (*tls.Certificate, error) { return s.GetCertificate(nil) }
	if cfg.Cert != "" || cfg.Key != "" {
		read = func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
			if err != nil {
				return nil, fmt.Errorf("reading the certificate from %s and %s: %w", cfg.Cert, cfg.Key, err)
			}
			return &pair, nil
		}
	}
	if _, err := read(); err != nil {
		return nil, err // now, and not as the broker's refusal later
	}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }, nil
}
