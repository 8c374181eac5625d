package api_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/store"
)

func TestFleetIsSelectedPageByPage(t *testing.T) {
	n := start(t, api.Config{})
	for i := range 25 {
		n.cluster.Insert(fmt.Sprintf("pump-%02d", i), store.Point{Time: 5, Received: int64(i) * 1e6, Sensor: "s"})
	}
	path := "/api/v1/devices?limit=4&where=" + url.QueryEscape(`id like "pump-*" and attributes.model = "m1" and last_seen >= "1970-01-01T00:00:10Z"`)
	var got []string
	for cursor := ""; ; {
		page := decode[api.DeviceList](t, n.get(path+"&cursor="+cursor))
		for _, d := range page.Devices {
			got = append(got, d.ID)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
		if len(page.Devices) != 4 {
			t.Fatalf("a page of %d", len(page.Devices))
		}
	}
	if len(got) != 15 || got[0] != "pump-10" || got[14] != "pump-24" {
		t.Errorf("selected are %v", got)
	}
	for where, want := range map[string]string{
		`id = pump`: `character 6: found \"pump\" where a text in quotes belongs`,
		``:          "character 1",
	} {
		r := n.get("/api/v1/devices?where=" + url.QueryEscape(where))
		if r.status != 400 || !strings.Contains(r.body, want) {
			t.Errorf("where %q gave %d %s", where, r.status, r.body)
		}
	}
}
