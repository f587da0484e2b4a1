package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/broker"
)

var _ broker.Finder = (*Issuer)(nil)

const (
	accessorsPath = "auth/token/accessors"
	lookupPath    = "auth/token/lookup-accessor"
	lookups       = 8 // at once
)

// Find lists the tokens of leases by the metadata that createToken wrote. Everything that was
// created with a token ends with it. A token of another broker, or of a program that wrote no
// broker into the metadata, is left alone.
func (v *Issuer) Find(ctx context.Context, loss broker.Loss, f func(broker.Orphan) error) error {
	accessors, err := v.accessors(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookups)
	found := make(chan broker.Orphan)
	done := make(chan error, 1)
	go func() {
		var failed error
		for o := range found {
			if failed == nil {
				failed = f(o)
			}
		}
		done <- failed
	}()
	for _, accessor := range accessors {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			o, err := v.lookUp(ctx, accessor)
			if err == nil && o != nil {
				found <- *o
			}
			return err
		})
	}
	err = group.Wait()
	close(found)
	return errors.Join(err, <-done)
}

// accessors lists the accessors of all tokens.
func (v *Issuer) accessors(ctx context.Context) (list []string, err error) {
	a, err := v.own(ctx, v.lists, request{path: accessorsPath, list: true})
	if err != nil {
		return nil, v.notListed(err, accessorsPath, `"list", "sudo"`)
	}
	keys, _ := a.Data["keys"].([]any)
	for _, key := range keys {
		if accessor, ok := key.(string); ok {
			list = append(list, accessor)
		}
	}
	if len(list) == 0 {
		return nil, errUnreadable // the broker's own token is one of them
	}
	return list, nil
}

// notListed adds to a refusal what the broker's policy needs.
func (v *Issuer) notListed(err error, path, capabilities string) error {
	if status(err) != http.StatusForbidden {
		return fmt.Errorf("listing the tokens of leases: %w", err)
	}
	return fmt.Errorf("listing the tokens of leases: %w: give the broker's policy in Vault the capabilities [%s] on %q, for the time of the search", err, capabilities, path)
}

// lookUp returns what the token of an accessor belongs to; nil if it is not this broker's, or
// has ended.
func (v *Issuer) lookUp(ctx context.Context, accessor string) (*broker.Orphan, error) {
	a, err := v.own(ctx, v.retries, request{path: lookupPath, data: map[string]any{"accessor": accessor}})
	if s := status(err); s == http.StatusNotFound || s == http.StatusForbidden && says(err, invalidToken) || says(err, "invalid accessor") || says(err, "token not found") {
		return nil, nil
	}
	if err != nil {
		return nil, v.notListed(err, lookupPath, `"update"`)
	}
	meta := map[string]string{}
	if fields, ok := a.Data["meta"].(map[string]any); ok {
		for name, value := range fields {
			meta[name] = text(value)
		}
	}
	if v.cfg.Broker == "" || meta["broker"] != v.cfg.Broker || meta["issuer"] != v.cfg.Name || !strings.HasPrefix(meta["lease"], "lse_") {
		return nil, nil
	}
	expires, err := time.Parse(time.RFC3339, text(a.Data["expire_time"]))
	if err != nil {
		return nil, errUnreadable
	}
	return &broker.Orphan{
		OrphanKey: broker.OrphanKey{Target: accessor}, Lease: meta["lease"], Holder: meta["holder"], Entitlement: meta["entitlement"],
		Text: "the token with this accessor, and what was created with it", Expires: expires.UTC(),
		Handle: handle{Accessor: accessor, Made: madeUnknown, At: v.at}.encode(),
	}, nil
}
