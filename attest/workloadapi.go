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

// The agent is a socket away on the same machine: it is asked again soon, so
// that a broker is not deaf for long after the agent's restart. (gRPC alone
// would wait up to two minutes between attempts to connect.) The two waits add
// up: one for a connection, one to ask over it.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 5 * time.Second
	reconnect  = time.Second
)

// Parts of the source, as they are called in logs and in Degraded.
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

// openWorkloadAPI gets the first SVID and bundles.
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
			return fmt.Errorf("waiting for the Workload API at %s (%s): %s: %w", s.cfg.WorkloadAPI, s.cfg.StartTimeout, hint(err), err)
		case <-time.After(wait.Next()):
		}
	}
}

// advice says what an operator can do about an agent that gives nothing.
func hint(err error) string {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return "the agent knows no identity for this process: register the broker as a workload"
	case codes.Unavailable:
		return "nobody answers: see whether the agent runs and may be reached by this user"
	}
	return "it gave nothing usable"
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

// errForeignSVID is a mistake that waiting does not mend.
var errForeignSVID = errors.New("the Workload API gave the broker an identity of another trust domain")

// applyX509 puts an SVID and X.509 bundles in force. An SVID of another trust
// domain than the configured one is a mistake of somebody's, and changes
// nothing.
func (s *Source) applyX509(c *workloadapi.X509Context) error {
	svid := c.DefaultSVID() // the first is the default (SPIFFE Workload API, section 5.3)
	if td := svid.ID.TrustDomain().Name(); s.cfg.TrustDomain != "" && td != s.cfg.TrustDomain {
		return fmt.Errorf("%w: %s, but its trust_domain is %s", errForeignSVID, svid.ID, s.cfg.TrustDomain)
	}
	s.own.Store(newOwnSVID(svid))
	return s.change(func(d *bundles) { d.x509 = c.Bundles.Bundles() })
}

func (s *Source) applyJWT(set *jwtbundle.Set) error {
	return s.change(func(d *bundles) { d.jwt = set.Bundles() })
}

// followWorkloadAPI takes what the agent streams. While the agent is away,
// what it last said stays in force.
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
	all.Go(func() { _ = s.pollFiles(ctx) }) // certificates of servers
	all.Wait()
	return nil
}

// again starts a watch that ended although nobody ended it: go-spiffe gives up
// when the agent answers Canceled or InvalidArgument, as one does that is
// shutting down.
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

type x509Watcher struct{ s *Source }

func (w x509Watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.s.report(partX509, w.s.applyX509(c))
}

func (w x509Watcher) OnX509ContextWatchError(err error) { w.s.watchFailed(partX509, err) }

type jwtWatcher struct{ s *Source }

func (w jwtWatcher) OnJWTBundlesUpdate(set *jwtbundle.Set) { w.s.report(partJWT, w.s.applyJWT(set)) }

func (w jwtWatcher) OnJWTBundlesWatchError(err error) { w.s.watchFailed(partJWT, err) }

func (s *Source) watchFailed(part string, err error) {
	if status.Code(err) == codes.Canceled {
		return // our own end; if it is the agent's, again says so
	}
	if part == partX509 && s.own.Load() == nil || part == partJWT && len(s.trust.Load().jwt) == 0 {
		s.report(part, fmt.Errorf("%s: %w", hint(err), err))
		return
	}
	s.report(part, fmt.Errorf("%s; what it last said stays in force: %w", hint(err), err))
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
		return "", time.Time{}, fmt.Errorf("fetching a JWT-SVID from %s: %s: %w", s.cfg.WorkloadAPI, hint(err), err)
	}
	return svid.Marshal(), svid.Expiry, nil
}
