package attest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

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
