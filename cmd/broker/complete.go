package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

// What a shell offers on TAB. Nothing is offered that had to be asked of a broker
// which can't be reached quickly.

// completeEntitlement offers the names of what the caller may ask for; and files
// after it, which are a command's own arguments.
func (a *app) completeEntitlement(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return a.offered(c, func(o api.Offer) []string { return []string{o.Entitlement} })
	case c.Name() == "exec":
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeScope offers the scopes of the entitlement that is named before.
func (a *app) completeScope(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offered(c, func(o api.Offer) (scopes []string) {
		for _, s := range o.Scopes {
			if len(args) > 0 && o.Entitlement == args[0] {
				scopes = append(scopes, s.Scope)
			}
		}
		return scopes
	})
}

// offered asks the broker what the caller may ask for, and picks from that.
func (a *app) offered(c *cobra.Command, pick func(api.Offer) []string) (names []string, _ cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
	defer cancel()
	_ = a.session(ctx, func(ctx context.Context, client *api.Client) error { // what goes wrong offers nothing
		offers, err := client.Entitlements(ctx)
		for _, o := range offers {
			names = append(names, pick(o)...)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completes has a shell offer a flag's values.
func completes(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag
	}
}

// oneOf offers these words.
func oneOf(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
