package localca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// Serve serves the SPIFFE Workload API on l until ctx ends. Every client gets the
// identities ids, the first of which is the default. Without ids it serves only
// bundles, like an agent without a registration for its caller.
//
// Streams push every rotation and federation, and renew SVIDs halfway through their
// lifetime.
func (ca *CA) Serve(ctx context.Context, l net.Listener, ids ...string) error {
	for _, id := range ids {
		if err := ca.checkID(id); err != nil {
			return err
		}
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(guardUnary), grpc.StreamInterceptor(guardStream))
	workload.RegisterSpiffeWorkloadAPIServer(server, &workloadAPI{ca: ca, ids: ids})
	stop := context.AfterFunc(ctx, server.Stop) // not GracefulStop: streams do not end by themselves
	defer stop()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serving the Workload API on %s: %w", l.Addr(), err)
	}
	return nil
}

// guard requires the security header, which keeps out forged requests (SSRF) of
// other programs (SPIFFE Workload Endpoint, section 6.1).
func guard(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if !slices.Equal(md.Get("workload.spiffe.io"), []string{"true"}) {
		return status.Error(codes.InvalidArgument, "the security header is missing: send workload.spiffe.io: true")
	}
	return nil
}

func guardUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := guard(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func guardStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := guard(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	ca  *CA
	ids []string

	mu     sync.Mutex
	issued map[string]issuedSVID
}

// An issuedSVID is sent to every process that asks for it soon, as by a SPIRE agent:
// processes of one workload have the same key.
type issuedSVID struct {
	svid    tls.Certificate
	at      time.Time
	changed <-chan struct{} // of the authority at that time
}

// svidReuse is for how long an SVID is sent again. It is renewed within SVIDTTL/2 from
// then.
const svidReuse = SVIDTTL / 4

func (w *workloadAPI) x509SVID(id string) (tls.Certificate, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := w.ca.next()
	if s, ok := w.issued[id]; ok && s.changed == changed && time.Since(s.at) < svidReuse {
		return s.svid, nil
	}
	svid, err := w.ca.X509SVID(id, SVIDTTL, w.ca.hostsOf(id)...)
	if err != nil {
		return svid, err
	}
	if w.issued == nil {
		w.issued = map[string]issuedSVID{}
	}
	w.issued[id] = issuedSVID{svid, time.Now(), changed}
	return svid, nil
}

var errNoIdentity = status.Error(codes.PermissionDenied, "no identity issued")

// push calls send at once, at every change, and at every interval, until the client
// disconnects.
func (w *workloadAPI) push(ctx context.Context, every time.Duration, send func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		changed := w.ca.next() // before send, so that no change is missed
		if err := send(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if len(w.ids) == 0 {
		return errNoIdentity
	}
	return w.push(stream.Context(), SVIDTTL/2, func() error {
		response, err := w.x509SVIDs()
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		return stream.Send(response)
	})
}

func (w *workloadAPI) x509SVIDs() (*workload.X509SVIDResponse, error) {
	bundles := w.ca.bundles()
	own := x509Bundle(bundles[w.ca.domain])
	response := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}}
	for td, b := range bundles {
		if td != w.ca.domain {
			response.FederatedBundles[td.IDString()] = x509Bundle(b)
		}
	}
	for _, id := range w.ids {
		svid, err := w.x509SVID(id)
		if err != nil {
			return nil, err
		}
		s, err := toX509SVID(id, svid, own)
		if err != nil {
			return nil, err
		}
		response.Svids = append(response.Svids, s)
	}
	return response, nil
}

func toX509SVID(id string, svid tls.Certificate, bundle []byte) (*workload.X509SVID, error) {
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of an SVID: %w", err)
	}
	return &workload.X509SVID{SpiffeId: id, X509Svid: slices.Concat(svid.Certificate...), X509SvidKey: key, Bundle: bundle}, nil
}

func (w *workloadAPI) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return w.push(stream.Context(), SVIDTTL, func() error {
		response := &workload.X509BundlesResponse{Bundles: map[string][]byte{}}
		for td, b := range w.ca.bundles() {
			response.Bundles[td.IDString()] = x509Bundle(b)
		}
		return stream.Send(response)
	})
}

func (w *workloadAPI) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return w.push(stream.Context(), SVIDTTL, func() error {
		response := &workload.JWTBundlesResponse{Bundles: map[string][]byte{}}
		for td, b := range w.ca.bundles() {
			jwks, err := b.JWTBundle().Marshal()
			if err != nil {
				return status.Error(codes.Internal, err.Error())
			}
			response.Bundles[td.IDString()] = jwks
		}
		return stream.Send(response)
	})
}

func (w *workloadAPI) FetchJWTSVID(_ context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if len(r.Audience) == 0 || slices.Contains(r.Audience, "") {
		return nil, status.Error(codes.InvalidArgument, "the audience is missing")
	}
	ids := w.ids
	if r.SpiffeId != "" {
		ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id != r.SpiffeId })
	}
	if len(ids) == 0 {
		return nil, errNoIdentity
	}
	response := &workload.JWTSVIDResponse{}
	for _, id := range ids {
		token, err := w.ca.JWTSVID(id, JWTTTL, r.Audience...)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		response.Svids = append(response.Svids, &workload.JWTSVID{SpiffeId: id, Svid: token})
	}
	return response, nil
}

func (w *workloadAPI) ValidateJWTSVID(_ context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	var all []*spiffebundle.Bundle
	for _, b := range w.ca.bundles() {
		all = append(all, b)
	}
	svid, err := jwtsvid.ParseAndValidate(r.Svid, spiffebundle.NewSet(all...), []string{r.Audience})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

func (ca *CA) hostsOf(id string) []string {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.hosts[id]
}

// bundles returns the own bundle and the federated ones.
func (ca *CA) bundles() map[spiffeid.TrustDomain]*spiffebundle.Bundle {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	all := map[spiffeid.TrustDomain]*spiffebundle.Bundle{ca.domain: ca.bundle()}
	for td, b := range ca.federated {
		all[td] = b
	}
	return all
}

// x509Bundle returns the concatenated authorities in DER.
func x509Bundle(b *spiffebundle.Bundle) []byte {
	var der []byte
	for _, c := range b.X509Authorities() {
		der = append(der, c.Raw...)
	}
	return der
}
