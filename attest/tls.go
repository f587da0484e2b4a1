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

// ServerTLS configures the TLS of a listener.
type ServerTLS struct {
	SVID      bool   // serve with the broker's own SVID
	Cert, Key string // or with these PEM files, which are read again when they change

	// ClientCerts is "off", "optional" or "required". With "optional", Authenticate
	// rejects a certificate that is not valid, and the response names the cause;
	// endpoints without authentication work. With "required", the handshake fails,
	// so the client gets no response from any endpoint.
	ClientCerts string
}

var clientAuth = map[string]tls.ClientAuthType{
	"off":      tls.NoClientCert,
	"optional": tls.RequestClientCert,
	"required": tls.RequireAnyClientCert,
}

// ServerTLS returns the TLS configuration of a listener: TLS 1.3, HTTP/2 and
// HTTP/1.1, no session tickets. Authenticate verifies client certificates; the
// handshake verifies them only with ClientCerts "required".
//
// Session tickets are off because a stolen ticket would authenticate as the
// client, and because Go does not verify the chain again when a session resumes.
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

// certificate returns the GetCertificate function of a server.
func (s *Source) certificate(cfg ServerTLS) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	switch {
	case cfg.SVID && (cfg.Cert != "" || cfg.Key != ""):
		return nil, errors.New("both the SVID and certificate files are set: choose one")
	case cfg.SVID && s.cfg.WorkloadAPI == "":
		return nil, ErrNoSVID
	case cfg.SVID:
		return s.GetCertificate, nil // handshakes fail until the SVID arrives
	}
	c := &certFile{certPath: cfg.Cert, keyPath: cfg.Key}
	if cfg.Cert == "" || cfg.Key == "" {
		return nil, errors.New("serving TLS needs a certificate and a key: set both, or serve with the SVID")
	}
	if err := c.read(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certs = append(s.certs, c)
	return c.get, nil
}

// retireBefore is how long before a client's certificate expires the server closes
// its connection. It is longer than a connection may be idle.
const retireBefore = 5 * time.Minute

// CloseExpiringConnections asks clients whose certificate expires soon to
// reconnect with a newer one: it sets "Connection: close", which closes an HTTP/2
// connection with GOAWAY. Otherwise a connection that outlives its certificate
// would suddenly get refusals, although the client has fetched a new certificate.
func CloseExpiringConnections(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && expiresSoon(r.TLS.PeerCertificates[0], time.Now()) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// expiresSoon reports whether a certificate is in the last third of its lifetime or
// in its last minutes, whichever is shorter. SPIRE agents renew halfway.
func expiresSoon(leaf *x509.Certificate, now time.Time) bool {
	margin := min(retireBefore, leaf.NotAfter.Sub(leaf.NotBefore)/3)
	return now.After(leaf.NotAfter.Add(-margin))
}

// ClientTLS configures the TLS of a client of the broker.
type ClientTLS struct {
	// BrokerID is the SPIFFE ID that the broker must prove, such as
	// "spiffe://acme.test/broker". Empty: any workload of TrustDomain.
	BrokerID    string
	TrustDomain string // empty: the client's own

	// WebPKI means that the broker has a web server's certificate: the client
	// verifies it and the host name with Roots (nil: the system's) and ignores
	// SPIFFE IDs.
	WebPKI bool
	Roots  *x509.CertPool

	// Cert and Key are PEM files, which each handshake reads again. Empty: the
	// client's SVID from the Workload API.
	Cert, Key string

	// NoCert is for callers that authenticate with a token. The broker refuses a
	// certificate of another identity next to a token, as next to a person's session.
	NoCert bool
}

// ClientTLS returns the TLS configuration of a client of the broker.
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
				return fmt.Errorf("the server is %s, not the broker %s", got, id)
			}
			return nil
		}, nil
	}
	name := cmp.Or(cfg.TrustDomain, s.ownDomain().Name())
	td, err := trustDomain(name)
	if err != nil {
		return nil, fmt.Errorf("the broker's trust domain: %w", err)
	}
	return tlsconfig.AuthorizeMemberOf(td), nil
}

// clientCert returns a GetClientCertificate function. TLS calls it for each
// handshake, so that the next connection uses a rotated SVID.
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
		return nil, err // fail here rather than with the broker's refusal later
	}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }, nil
}
