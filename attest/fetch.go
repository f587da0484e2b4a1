package attest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A FetchedJWT is a JWT-SVID from a Workload API. Token is a secret.
type FetchedJWT struct {
	ID       string
	Audience []string
	Expires  time.Time
	Hint     string // the operator's advice which of several identities to use
	Token    string
}

// A FetchedX509 is an X.509-SVID from a Workload API. Key is a secret.
type FetchedX509 struct {
	ID          string
	Expires     time.Time
	Hint        string
	Certificate []byte            // PEM, the leaf first
	Key         []byte            // PEM, PKCS #8
	Bundle      []byte            // PEM, the authorities of the SVID's trust domain
	Federated   map[string][]byte // PEM, by trust domain
}

// FetchJWT fetches JWT-SVIDs of this process for the audiences from the Workload API at
// an address. An empty id selects all identities, of which the first is the default
// (SPIFFE Workload API, section 6.2.1). FetchJWT does not verify the tokens. It waits for
// the agent and for a registration until ctx ends.
func FetchJWT(ctx context.Context, address, id string, audiences []string) ([]FetchedJWT, error) {
	if id != "" {
		if _, err := workloadID(id); err != nil {
			return nil, fmt.Errorf("the SPIFFE ID %q %w", id, err)
		}
	}
	what := "a JWT-SVID"
	if id != "" {
		what += " of " + id
	}
	return fetchUntil(ctx, address, what, func(client *workloadClient) ([]FetchedJWT, error) {
		request := &workload.JWTSVIDRequest{Audience: audiences, SpiffeId: id}
		response, err := client.api.FetchJWTSVID(withHeader(ctx), request)
		if err != nil {
			return nil, err
		}
		var all []FetchedJWT
		for _, s := range response.Svids {
			svid, err := jwtsvid.ParseInsecure(s.Svid, audiences)
			if err != nil {
				return nil, err
			}
			all = append(all, FetchedJWT{svid.ID.String(), svid.Audience, svid.Expiry, s.Hint, s.Svid})
		}
		return all, nil
	})
}

// FetchX509 fetches the X.509-SVIDs of this process, with their bundles, from the
// Workload API at an address. The first is the default (SPIFFE Workload API, section
// 5.3). FetchX509 waits like FetchJWT.
func FetchX509(ctx context.Context, address string) ([]FetchedX509, error) {
	return fetchUntil(ctx, address, "an X.509-SVID", func(client *workloadClient) (all []FetchedX509, err error) {
		one, cancel := context.WithCancel(ctx)
		defer cancel()
		err = client.x509(one, func(r *workload.X509SVIDResponse) (err error) {
			if all, err = readX509(r); err != nil {
				return err
			}
			return errOnce
		})
		if !errors.Is(err, errOnce) {
			return nil, err
		}
		return all, nil
	})
}

// fetchUntil calls fetch until it succeeds or ctx ends, as long as the agent does not
// respond or has no identity for this process: a registration takes seconds to reach it.
func fetchUntil[T any](ctx context.Context, address, what string, fetch func(*workloadClient) ([]T, error)) ([]T, error) {
	if err := CheckWorkloadAPI(address); err != nil {
		return nil, fmt.Errorf("the Workload API address %q: %w", address, err)
	}
	client, err := dialWorkloadAPI(address)
	if err != nil {
		return nil, err
	}
	defer client.close()
	var before error
	for wait := (&retry{}); ; {
		all, err := fetch(client)
		if err == nil && len(all) == 0 {
			err = errors.New("the response has none")
		}
		if err == nil {
			return all, nil
		}
		err = moreTelling(err, before)
		before = err
		if code := status.Code(err); code == codes.Unavailable || code == codes.PermissionDenied {
			select {
			case <-time.After(wait.next()):
				continue
			case <-ctx.Done():
			}
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("fetching %s from the Workload API at %s: %s: %w", what, address, hint(err), err)
	}
}

// readX509 converts a response to PEM. It rejects a certificate whose key or SPIFFE ID is
// another one.
func readX509(r *workload.X509SVIDResponse) (all []FetchedX509, err error) {
	federated := map[string][]byte{}
	for name, der := range r.FederatedBundles {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, errors.New("a federated bundle has a malformed trust domain")
		}
		if federated[td.Name()], err = bundlePEM(der); err != nil {
			return nil, fmt.Errorf("the bundle of %s: %w", td, err)
		}
	}
	for _, s := range r.Svids {
		svid, err := x509svid.ParseRaw(s.X509Svid, s.X509SvidKey)
		if err != nil {
			return nil, err
		}
		f := FetchedX509{ID: svid.ID.String(), Expires: svid.Certificates[0].NotAfter, Hint: s.Hint, Federated: federated}
		if f.Certificate, f.Key, err = svid.Marshal(); err != nil {
			return nil, err
		}
		if f.Bundle, err = bundlePEM(s.Bundle); err != nil {
			return nil, fmt.Errorf("the bundle of %s: %w", svid.ID.TrustDomain(), err)
		}
		all = append(all, f)
	}
	return all, nil
}

// bundlePEM converts concatenated certificates in DER to PEM.
func bundlePEM(der []byte) ([]byte, error) {
	certs, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	for _, c := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Builder accepts all
	}
	return []byte(out.String()), nil
}
