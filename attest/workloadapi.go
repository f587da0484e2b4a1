package attest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Retries are short, because the agent is on the same machine and the broker must
// notice its restart soon. (gRPC by default waits up to two minutes between
// connection attempts.) The back-offs for the connection and for calls add up.
const (
	firstRetry = 250 * time.Millisecond // of calls
	lastRetry  = 5 * time.Second        // of calls
	reconnect  = time.Second            // longest back-off for the connection
)

// Names of the source's parts in logs and in Degraded.
const (
	partX509 = "Workload API, X.509"
	partJWT  = "Workload API, JWT bundles"
)

func (s *Source) client(ctx context.Context) (*workloadapi.Client, error) {
	params := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: firstRetry, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnect},
		MinConnectTimeout: lastRetry,
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(s.cfg.WorkloadAPI),
		workloadapi.WithDialOptions(grpc.WithConnectParams(params)),
		workloadapi.WithBackoffStrategy(retries{}))
	if err != nil {
		return nil, fmt.Errorf("connecting to the Workload API at %s: %w", s.cfg.WorkloadAPI, err)
	}
	return client, nil
}

// openWorkloadAPI fetches the first SVID and bundles. It retries until
// StartTimeout; with StartWithoutAgent it tries once and leaves the rest to Run.
func (s *Source) openWorkloadAPI(ctx context.Context) error {
	client, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	defer cancel()
	for wait := (&retry{}); ; {
		err = s.fetch(ctx, client)
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
		case <-time.After(wait.Next()):
		}
	}
}

// hint returns advice for the operator about an error of the Workload API.
func hint(err error) string {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return "the agent has no identity for this process: register the broker as a workload"
	case codes.Unavailable:
		return "the agent does not respond: check that it runs and that this user may open its socket"
	}
	return "the agent's response is not usable"
}

func (s *Source) fetch(ctx context.Context, client *workloadapi.Client) error {
	x509, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	if err := s.applyX509(x509); err != nil {
		return err
	}
	jwt, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	return s.applyJWT(jwt)
}

// errForeignSVID means that the agent and the configuration disagree about the
// trust domain. Retrying does not help.
var errForeignSVID = errors.New("the Workload API returned an SVID of another trust domain")

// applyX509 applies an update of the SVID and the X.509 bundles. It rejects the
// whole update if the SVID is of another trust domain than the configured one.
func (s *Source) applyX509(c *workloadapi.X509Context) error {
	svid := c.DefaultSVID() // the first one (SPIFFE Workload API, section 5.3)
	if td := svid.ID.TrustDomain().Name(); s.cfg.TrustDomain != "" && td != s.cfg.TrustDomain {
		return fmt.Errorf("%w: %s, but trust_domain is %s: correct trust_domain or the registration", errForeignSVID, svid.ID, s.cfg.TrustDomain)
	}
	s.own.Store(newOwnSVID(svid))
	return s.change(func(d *bundles) { d.x509 = c.Bundles.Bundles() })
}

func (s *Source) applyJWT(set *jwtbundle.Set) error {
	return s.change(func(d *bundles) { d.jwt = set.Bundles() })
}

// followWorkloadAPI applies the agent's updates until ctx ends. While the agent is
// unreachable, its last update stays in force.
func (s *Source) followWorkloadAPI(ctx context.Context) error {
	client, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	var all sync.WaitGroup
	all.Go(func() {
		s.watch(ctx, partX509, func() error { return client.WatchX509Context(ctx, x509Watcher{s}) })
	})
	all.Go(func() { s.watch(ctx, partJWT, func() error { return client.WatchJWTBundles(ctx, jwtWatcher{s}) }) })
	all.Go(func() { _ = s.pollFiles(ctx) }) // the certificate files of servers
	all.Wait()
	return nil
}

// watch runs a watch until ctx ends and restarts it when it returns: go-spiffe
// stops watching if the agent answers Canceled or InvalidArgument, and an agent
// that shuts down answers Canceled.
func (s *Source) watch(ctx context.Context, part string, run func() error) {
	for ctx.Err() == nil {
		err := run()
		if ctx.Err() != nil {
			return
		}
		s.report(part, err)
		select {
		case <-ctx.Done():
		case <-time.After(lastRetry):
		}
	}
}

// x509Watcher implements workloadapi.X509ContextWatcher.
type x509Watcher struct{ s *Source }

func (w x509Watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.s.report(partX509, w.s.applyX509(c))
}

func (w x509Watcher) OnX509ContextWatchError(err error) { w.s.watchFailed(partX509, err) }

// jwtWatcher implements workloadapi.JWTBundleWatcher.
type jwtWatcher struct{ s *Source }

func (w jwtWatcher) OnJWTBundlesUpdate(set *jwtbundle.Set) { w.s.report(partJWT, w.s.applyJWT(set)) }

func (w jwtWatcher) OnJWTBundlesWatchError(err error) { w.s.watchFailed(partJWT, err) }

func (s *Source) watchFailed(part string, err error) {
	if status.Code(err) == codes.Canceled {
		return // ctx ended; or the agent canceled, which watch reports
	}
	if part == partX509 && s.own.Load() == nil || part == partJWT && len(s.trust.Load().jwt) == 0 {
		s.report(part, fmt.Errorf("%s: %w", hint(err), err))
		return
	}
	s.report(part, fmt.Errorf("%s; its last update stays in force: %w", hint(err), err))
}

// retries implements workloadapi.BackoffStrategy.
type retries struct{}

func (retries) NewBackoff() workloadapi.Backoff { return &retry{} }

type retry struct{ last time.Duration }

func (r *retry) Next() time.Duration {
	r.last = min(max(2*r.last, firstRetry), lastRetry)
	return r.last
}

func (r *retry) Reset() { r.last = 0 }

// FetchJWTSVID fetches a JWT-SVID of this process for the audience from the
// Workload API, and returns it with its expiry. The token is a secret.
func (s *Source) FetchJWTSVID(ctx context.Context, audience string) (token string, expires time.Time, err error) {
	if s.cfg.WorkloadAPI == "" {
		return "", time.Time{}, errors.New("fetching a JWT-SVID: no Workload API is configured: set its address or use a token file")
	}
	client, err := s.client(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	defer client.Close()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("fetching a JWT-SVID from %s: %s: %w", s.cfg.WorkloadAPI, hint(err), err)
	}
	return svid.Marshal(), svid.Expiry, nil
}
