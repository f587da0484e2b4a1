package attest

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

// ClientTLS is what the TLS of a caller of the broker is made of.
type ClientTLS struct {
	// BrokerID is whom the broker must prove to be,
	// "spiffe://acme.test/broker". Empty: any workload of TrustDomain will do.
	BrokerID    string
	TrustDomain string // empty: our own

	// Web is for a broker that serves with a web server's certificate: that
	// and the host's name are verified by Roots (nil: the system's), and no
	// SPIFFE ID is asked for.
	Web   bool
	Roots *x509.CertPool

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
	if !cfg.Web {
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

// FetchJWTSVID asks the Workload API for a JWT-SVID of our own for the
// audience, and says when it expires. The token is a secret.
func (s *Source) FetchJWTSVID(ctx context.Context, audience string) (token string, expires time.Time, err error) {
	if s.cfg.WorkloadAPI == "" {
		return "", time.Time{}, errors.New("fetching a JWT-SVID: there is no Workload API to ask")
	}
	client, err := s.client(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	defer client.Close()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("fetching a JWT-SVID from %s: %s: %w", s.cfg.WorkloadAPI, advice(err), err)
	}
	return svid.Marshal(), svid.Expiry, nil
}
