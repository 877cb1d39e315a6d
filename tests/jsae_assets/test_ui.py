"""A backfill over everything that the UI offers, by the real web server and daemon."""

from tests.jsae_assets.ui_server import IN_THE_DAEMON, QUICK_QUEUE, started

STALE = """query($key: AssetKeyInput!, $partition: String) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    staleStatus(partition: $partition) } } }"""


def test_a_backfill_over_everything_makes_each_cell_of_the_catalog_once_and_ends_successful(
    fresh_home, entries, tmp_path
):
    with started(fresh_home, tmp_path, entries(), QUICK_QUEUE | IN_THE_DAEMON) as server:
        expected = sorted(server.places()["catalog"]["offered"])
        server.wait_for("the catalog's entries to be known", lambda: server.places()["catalog"]["made"] == expected)
        everything = [asset for asset in server.places().values() if asset["executable"]]
        assert server.end_of_backfill(server.launch_backfill(everything)) == "COMPLETED_SUCCESS", server.output()
        for name, asset in server.places().items():
            # everything is asked for at once, so a cell may find no tokens yet, make them, and be followed by their run
            made = sorted(set(asset["made"])) if name == "tokens" else asset["made"]
            assert made == sorted(asset["offered"]), name
            for partition in asset["offered"] if asset["executable"] else []:
                stale = server.ask(STALE, key={"path": asset["path"]}, partition=partition or None)
                assert stale["assetNodeOrError"]["staleStatus"] == "FRESH", (name, partition)
        assert {run["status"] for run in server.runs()} == {"SUCCESS"}
