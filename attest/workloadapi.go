package attest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Retries are short, because the agent is on the same machine and the broker must
// notice its restart soon. (gRPC by default waits up to two minutes between
// connection attempts.) The back-offs for the connection and for calls add up.
const (
	firstRetry = 250 * time.Millisecond // of calls
	lastRetry  = 5 * time.Second        // of calls
	reconnect  = time.Second            // longest back-off for the connection
	pingAfter  = 6 * time.Minute        // of silence; gRPC servers refuse pings more often than every 5 min
)

// Names of the source's parts in logs and in Degraded.
const (
	partX509 = "Workload API, X.509"
	partJWT  = "Workload API, JWT bundles"
)

// A workloadClient calls the Workload API. It does not use go-spiffe's client, which
// rejects a whole response for one key that it can't parse, so that no
// key would rotate and withdrawn keys would stay trusted.
type workloadClient struct {
	conn *grpc.ClientConn
	api  workload.SpiffeWorkloadAPIClient
}

func (s *Source) client() (*workloadClient, error) { return dialWorkloadAPI(s.cfg.WorkloadAPI) }

// dialWorkloadAPI returns a client of the Workload API at an address. It connects with the
// first call.
func dialWorkloadAPI(address string) (*workloadClient, error) {
	target, err := workloadapi.TargetFromAddress(address)
	if err != nil {
		return nil, fmt.Errorf("the Workload API address %q: %w", address, err)
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket authenticates (SPIFFE Workload Endpoint, section 3)
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstRetry, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnect},
			MinConnectTimeout: lastRetry,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: lastRetry}))
	if err != nil {
		return nil, fmt.Errorf("connecting to the Workload API at %s: %w", address, err)
	}
	return &workloadClient{conn, workload.NewSpiffeWorkloadAPIClient(conn)}, nil
}

func (c *workloadClient) close() { _ = c.conn.Close() }

// withHeader adds the security header (SPIFFE Workload Endpoint, section 6.1).
func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// x509 calls apply for each update of the SVIDs and X.509 bundles, until it returns
// an error or the stream ends.
func (c *workloadClient) x509(ctx context.Context, apply func(*workload.X509SVIDResponse) error) error {
	stream, err := c.api.FetchX509SVID(withHeader(ctx), &workload.X509SVIDRequest{})
	return each(stream, err, apply)
}

// jwt is x509 for the JWT bundles.
func (c *workloadClient) jwt(ctx context.Context, apply func(*workload.JWTBundlesResponse) error) error {
	stream, err := c.api.FetchJWTBundles(withHeader(ctx), &workload.JWTBundlesRequest{})
	return each(stream, err, apply)
}

func each[T any](stream grpc.ServerStreamingClient[T], err error, apply func(*T) error) error {
	for err == nil {
		var response *T
		if response, err = stream.Recv(); err == nil {
			err = apply(response)
		}
	}
	return err
}

// openWorkloadAPI fetches the first SVID and bundles. It retries until
// StartTimeout; with StartWithoutAgent it tries once and leaves the rest to Run.
func (s *Source) openWorkloadAPI(ctx context.Context) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	defer client.close()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	defer cancel()
	var before error
	for wait := (&retry{}); ; {
		err = moreTelling(s.fetch(ctx, client), before)
		before = err
		switch {
		case err == nil:
			return nil
		case s.cfg.StartWithoutAgent && errors.Is(err, errForeignSVID):
			return err
		case s.cfg.StartWithoutAgent:
			s.report(partX509, fmt.Errorf("%s: %w", hint(err), err))
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting %s for the Workload API at %s: %s: %w", s.cfg.StartTimeout, s.cfg.WorkloadAPI, hint(err), err)
		case <-time.After(wait.next()):
		}
	}
}

// moreTelling returns the error of an attempt, or that of the attempt before if the
// deadline cut the attempt short.
func moreTelling(err, before error) error {
	if before != nil && status.Code(err) == codes.DeadlineExceeded {
		return before
	}
	return err
}

// hint returns advice for the operator about an error of the Workload API.
func hint(err error) string {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return "the agent has no identity for this process: register it as a workload"
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return "the agent does not respond: check that it runs and that this user may open its socket"
	}
	return "the agent's response is not usable"
}

// errOnce ends a stream after its first update.
var errOnce = errors.New("one update is enough")

// fetch applies one update of each stream.
func (s *Source) fetch(ctx context.Context, client *workloadClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := client.x509(ctx, func(r *workload.X509SVIDResponse) error {
		err := s.applyX509(r)
		if errors.Is(err, errForeignSVID) || s.own.Load() == nil {
			return err
		}
		s.report(partX509, err)
		return errOnce
	})
	if err != errOnce {
		return err
	}
	err = client.jwt(ctx, func(r *workload.JWTBundlesResponse) error {
		s.report(partJWT, s.applyJWT(r))
		return errOnce
	})
	if err != errOnce {
		return err
	}
	return nil
}

// errForeignSVID means that the agent and the configuration disagree about the
// trust domain. Retrying does not help.
var errForeignSVID = errors.New("the Workload API returned an SVID of another trust domain")

// applyX509 applies an update of the SVID and the X.509 bundles. It rejects the
// whole update if the SVID is of another trust domain than the configured one.
// Otherwise the bundles count even if the SVID is not usable.
func (s *Source) applyX509(r *workload.X509SVIDResponse) error {
	if len(r.Svids) == 0 {
		return errors.New("the response has no SVID")
	}
	first := r.Svids[0] // the default (SPIFFE Workload API, section 5.3)
	svid, err := x509svid.ParseRaw(first.X509Svid, first.X509SvidKey)
	if err == nil {
		if td := svid.ID.TrustDomain().Name(); s.cfg.TrustDomain != "" && td != s.cfg.TrustDomain {
			return fmt.Errorf("%w: %s, but trust_domain is %s: correct trust_domain or the registration", errForeignSVID, svid.ID, s.cfg.TrustDomain)
		}
		s.own.Store(newOwnSVID(svid))
	}
	raw := maps.Clone(r.FederatedBundles)
	if raw == nil {
		raw = map[string][]byte{}
	}
	for _, other := range slices.Backward(r.Svids) { // the first one counts
		raw[other.SpiffeId] = other.Bundle
	}
	return errors.Join(err, s.applyBundles(partX509, raw, parseDER))
}

func (s *Source) applyJWT(r *workload.JWTBundlesResponse) error {
	return s.applyBundles(partJWT, r.Bundles, parseJWTBundle)
}

// applyBundles replaces the bundles of a part by raw, which has them by the SPIFFE ID
// of a trust domain or of a workload in it. It returns the errors of the listed
// trust domains; the last bundle of such a domain stays in force for a limited time.
func (s *Source) applyBundles(part string, raw map[string][]byte, parse func(spiffeid.TrustDomain, []byte) (*bundle, error)) error {
	now := time.Now()
	var errs []error
	parsed := map[origin]*bundle{} // nil: not readable
	for _, id := range slices.Sorted(maps.Keys(raw)) {
		td, err := spiffeid.TrustDomainFromString(id)
		if err != nil {
			errs = append(errs, errors.New("a bundle has a malformed trust domain"))
			continue
		}
		b, err := parse(td, raw[id])
		if err != nil && s.isListed(td) {
			errs = append(errs, fmt.Errorf("reading the bundle of %s: %w", td, err))
		}
		parsed[origin{part, td}] = b
	}
	err := s.change(now, func() {
		maps.DeleteFunc(s.delivered, func(from origin, _ *delivery) bool {
			_, ok := parsed[from]
			return from.part == part && !ok
		})
		for from, b := range parsed {
			if b == nil {
				s.unconfirmed(from, now)
				continue
			}
			s.deliver(from, b, now)
		}
	})
	return errors.Join(append(errs, err)...)
}

// followWorkloadAPI applies the agent's updates until ctx ends. While the agent is
// unreachable, its last update stays in force, the bundles for a limited time.
func (s *Source) followWorkloadAPI(ctx context.Context) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	defer client.close()
	var all sync.WaitGroup
	all.Go(func() {
		s.watch(ctx, partX509, func(ctx context.Context, received func()) error {
			return client.x509(ctx, func(r *workload.X509SVIDResponse) error {
				received()
				s.report(partX509, s.applyX509(r))
				return nil
			})
		})
	})
	all.Go(func() {
		s.watch(ctx, partJWT, func(ctx context.Context, received func()) error {
			return client.jwt(ctx, func(r *workload.JWTBundlesResponse) error {
				received()
				s.report(partJWT, s.applyJWT(r))
				return nil
			})
		})
	})
	all.Go(func() { _ = s.pollFiles(ctx) }) // the certificate files of servers, and the age of bundles
	all.Wait()
	return nil
}

// watch runs a stream until ctx ends, and restarts it when it fails. The stream calls
// received for each update; the first must arrive within StartTimeout.
func (s *Source) watch(ctx context.Context, part string, stream func(ctx context.Context, received func()) error) {
	for wait := (&retry{}); ctx.Err() == nil; {
		one, cancel := context.WithCancelCause(ctx)
		late := time.AfterFunc(s.cfg.StartTimeout, func() { cancel(errors.New("the agent sends no update")) })
		err := stream(one, func() { late.Stop(); wait.reset() })
		late.Stop()
		if ctx.Err() == nil && one.Err() != nil {
			err = context.Cause(one)
		}
		cancel(nil)
		if ctx.Err() != nil {
			return
		}
		s.watchFailed(part, err)
		select {
		case <-ctx.Done():
		case <-time.After(wait.next()):
		}
	}
}

func (s *Source) watchFailed(part string, err error) {
	now, some := time.Now(), false
	changeErr := s.change(now, func() {
		for from := range s.delivered {
			if from.part == part {
				s.unconfirmed(from, now)
				some = true
			}
		}
	})
	stays := ""
	if some {
		stays = "; its last update stays in force for a limited time"
	}
	s.report(part, errors.Join(fmt.Errorf("%s%s: %w", hint(err), stays, err), changeErr))
}

// A retry is a back-off.
type retry struct{ last time.Duration }

func (r *retry) next() time.Duration {
	r.last = min(max(2*r.last, firstRetry), lastRetry)
	return r.last
}

func (r *retry) reset() { r.last = 0 }

// FetchJWTSVID fetches a JWT-SVID of this process for the audience from the
// Workload API, and returns it with its expiry. The token is a secret.
func (s *Source) FetchJWTSVID(ctx context.Context, audience string) (token string, expires time.Time, err error) {
	if s.cfg.WorkloadAPI == "" {
		return "", time.Time{}, errors.New("fetching a JWT-SVID: no Workload API is configured: set its address or use a token file")
	}
	client, err := s.client()
	if err != nil {
		return "", time.Time{}, err
	}
	defer client.close()
	response, err := client.api.FetchJWTSVID(withHeader(ctx), &workload.JWTSVIDRequest{Audience: []string{audience}})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("fetching a JWT-SVID from %s: %s: %w", s.cfg.WorkloadAPI, hint(err), err)
	}
	if len(response.Svids) == 0 {
		return "", time.Time{}, fmt.Errorf("fetching a JWT-SVID from %s: the response has none", s.cfg.WorkloadAPI)
	}
	svid, err := parseToken(response.Svids[0].Svid)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("fetching a JWT-SVID from %s: %w", s.cfg.WorkloadAPI, err)
	}
	return response.Svids[0].Svid, svid.expires, nil
}
